// OpenAI's client for Node: responses.
import OpenAI from "openai";
import { zodTextFormat } from "openai/helpers/zod";
import { ANSWER, API_KEY, assert, BASE_URL, Coat, GREET, GREETING, MODEL, PAINT, PAINTED, PAINT_PARAMETERS, run } from "./cases.mjs";

const client = new OpenAI({ baseURL: BASE_URL, apiKey: API_KEY });
const options = { model: MODEL, temperature: 0 };
const tools = [{ type: "function", name: "paint", description: "Paint.", parameters: PAINT_PARAMETERS, strict: true }];

async function callAndContinue(tool_choice) {
  const input = [{ role: "user", content: PAINT }];
  const first = await client.responses.create({ ...options, input, tools, tool_choice, parallel_tool_calls: false });
  const calls = first.output.filter((item) => item.type === "function_call");
  assert.deepEqual(calls.map(({ name, arguments: text }) => [name, JSON.parse(text)]), [["paint", { color: "red" }]]);
  input.push(...first.output, { type: "function_call_output", call_id: calls[0].call_id, output: PAINTED });
  const last = await client.responses.create({ ...options, input, tools });
  assert.equal(last.output_text, ANSWER);
}

await run({
  async chat() {
    const response = await client.responses.create({ ...options, input: GREET });
    assert.deepEqual([response.output_text, response.status], [GREETING, "completed"]);
  },
  async stream() {
    const texts = [];
    for await (const event of client.responses.stream({ ...options, input: GREET })) {
      if (event.type === "response.output_text.delta") texts.push(event.delta);
    }
    assert.equal(texts.join(""), GREETING);
    assert.ok(texts.length > 3);
  },
  tools: () => callAndContinue("auto"),
  required: () => callAndContinue("required"),
  async structured() {
    const response = await client.responses.parse({ ...options, input: GREET, text: { format: zodTextFormat(Coat, "coat") } });
    Coat.parse(response.output_parsed);
  },
});
