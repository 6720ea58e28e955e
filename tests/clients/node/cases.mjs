// What the programs share: where the service is, what they ask, and one JSON line for each case.
import assert from "node:assert/strict";
import { z } from "zod";

export const { BASE_URL, API_KEY, MODEL } = process.env;
export const [GREET, PAINT] = ["Greet me.", "Paint the wall red."];
export const [GREETING, ANSWER, PAINTED] = ["Good morning, 안녕하세요.", "The wall is red now.", "painted"];
export const Paint = z.object({ color: z.enum(["red", "green"]) });
export const Coat = z.object({ color: z.enum(["red", "green"]), layers: z.union([z.literal(1), z.literal(2)]) });
export const PAINT_PARAMETERS = {
  type: "object",
  properties: { color: { type: "string", enum: ["red", "green"] } },
  required: ["color"],
  additionalProperties: false,
};
export { assert };

// Runs each case, a function that throws if the service does not respond as the client expects.
export async function run(cases) {
  for (const [name, test] of Object.entries(cases)) {
    let error = null;
    try {
      await test();
    } catch (caught) {
      console.error(caught);
      error = `${caught.name}: ${caught.message}`;
    }
    console.log(JSON.stringify({ case: name, error }));
  }
}
