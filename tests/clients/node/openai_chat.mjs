// OpenAI's client for Node: chats.
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { ANSWER, API_KEY, assert, BASE_URL, Coat, GREET, GREETING, MODEL, PAINT, PAINTED, PAINT_PARAMETERS, run } from "./cases.mjs";

const client = new OpenAI({ baseURL: BASE_URL, apiKey: API_KEY });
const options = { model: MODEL, temperature: 0 };
const tools = [{ type: "function", function: { name: "paint", description: "Paint.", parameters: PAINT_PARAMETERS } }];

async function callAndContinue(tool_choice) {
  const messages = [{ role: "user", content: PAINT }];
  const first = await client.chat.completions.create({ ...options, messages, tools, tool_choice, parallel_tool_calls: false });
  const message = first.choices[0].message;
  assert.equal(message.tool_calls?.length, 1);
  const call = message.tool_calls[0];
  assert.deepEqual([call.function.name, JSON.parse(call.function.arguments)], ["paint", { color: "red" }]);
  messages.push(message, { role: "tool", tool_call_id: call.id, content: PAINTED });
  const last = await client.chat.completions.create({ ...options, messages, tools });
  assert.equal(last.choices[0].message.content, ANSWER);
}

await run({
  async chat() {
    const completion = await client.chat.completions.create({ ...options, messages: [{ role: "user", content: GREET }] });
    assert.deepEqual([completion.choices[0].message.content, completion.choices[0].finish_reason], [GREETING, "stop"]);
  },
  async stream() {
    const stream = client.chat.completions.stream({ ...options, messages: [{ role: "user", content: GREET }] });
    const texts = [];
    stream.on("content", (delta) => texts.push(delta));
    assert.equal(await stream.finalContent(), GREETING);
    assert.ok(texts.length > 3);
  },
  async tools() {
    await callAndContinue("auto");
    // The helper streams both turns, and calls the function.
    const colors = [];
    const runner = client.chat.completions.runTools({
      ...options,
      stream: true,
      messages: [{ role: "user", content: PAINT }],
      tools: [{ type: "function", function: { ...tools[0].function, parse: JSON.parse, function: ({ color }) => { colors.push(color); return PAINTED; } } }],
    });
    assert.equal(await runner.finalContent(), ANSWER);
    assert.deepEqual(colors, ["red"]);
  },
  required: () => callAndContinue("required"),
  async structured() {
    const completion = await client.chat.completions.parse({
      ...options,
      messages: [{ role: "user", content: GREET }],
      response_format: zodResponseFormat(Coat, "coat"),
    });
    Coat.parse(completion.choices[0].message.parsed);
  },
});
