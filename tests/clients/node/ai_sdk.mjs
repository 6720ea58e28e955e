// The Vercel AI SDK with its providers: `AI_PROVIDER` is compatible, chat or responses.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, stepCountIs, streamText, tool } from "ai";
import { ANSWER, API_KEY, assert, BASE_URL, Coat, GREET, GREETING, MODEL, Paint, PAINT, PAINTED, run } from "./cases.mjs";

const openai = createOpenAI({ baseURL: BASE_URL, apiKey: API_KEY });
const model = {
  compatible: () =>
    createOpenAICompatible({ name: "tunesmith", baseURL: BASE_URL, apiKey: API_KEY, includeUsage: true, supportsStructuredOutputs: true })(MODEL),
  chat: () => openai.chat(MODEL),
  responses: () => openai.responses(MODEL),
}[process.env.AI_PROVIDER]();
const options = { model, temperature: 0 };
const tools = { paint: tool({ description: "Paint.", inputSchema: Paint, execute: () => PAINTED }) };

function assertCalled(steps, text) {
  assert.deepEqual(steps[0].toolCalls.map((call) => [call.toolName, call.input]), [["paint", { color: "red" }]]);
  assert.equal(text, ANSWER);
}

await run({
  async chat() {
    const { text, finishReason, usage } = await generateText({ ...options, prompt: GREET });
    assert.deepEqual([text, finishReason], [GREETING, "stop"]);
    assert.ok(usage.outputTokens > 1);
  },
  async stream() {
    const texts = [];
    const result = streamText({ ...options, prompt: GREET });
    for await (const text of result.textStream) texts.push(text);
    assert.equal(texts.join(""), GREETING);
    assert.ok(texts.length > 3);
    assert.ok((await result.usage).outputTokens > 1);
  },
  async tools() {
    const whole = await generateText({ ...options, prompt: PAINT, tools, stopWhen: stepCountIs(3) });
    assertCalled(whole.steps, whole.text);
    const streamed = streamText({ ...options, prompt: PAINT, tools, stopWhen: stepCountIs(3) });
    assertCalled(await streamed.steps, await streamed.text);
  },
  async required() {
    const prepareStep = ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? "required" : "auto" });
    const { steps, text } = await generateText({ ...options, prompt: PAINT, tools, prepareStep, stopWhen: stepCountIs(3) });
    assertCalled(steps, text);
  },
  async structured() {
    const { output } = await generateText({ ...options, prompt: GREET, output: Output.object({ schema: Coat }) });
    Coat.parse(output);
  },
});
