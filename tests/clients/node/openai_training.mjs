// OpenAI's client for Node: files, training and what is around them.
import { createHash, randomUUID } from "node:crypto";
import { createServer } from "node:http";
import { setTimeout as sleep } from "node:timers/promises";
import OpenAI, { toFile } from "openai";
import { assert, BASE_URL, GREET, GREETING, MODEL, run } from "./cases.mjs";

const { TRAINING_API_KEY, INFERENCE_API_KEY, SLOW_API_KEY, SINGLE_API_KEY, LOSING_URL } = process.env;
const BASE = "gpt-4o-mini-2024-07-18";
const RUN_SECONDS = 240;
const ROWS = Array.from({ length: 10 }, (_, number) => ({
  messages: [{ role: "user", content: GREET }, { role: "assistant", content: `Hello ${number}` }],
}));
// The end of a text in the model's vocabulary: without it, a completion is as long as it may be.
const END_TOKEN = "2";

const client = connect(TRAINING_API_KEY);

function connect(apiKey, options = {}) {
  return new OpenAI({ baseURL: BASE_URL, apiKey, ...options });
}

const asLines = (rows) => Buffer.from(rows.map((row) => `${JSON.stringify(row)}\n`).join(""));

async function upload(rows, purpose) {
  return (await client.files.create({ file: await toFile(asLines(rows), "rows.jsonl"), purpose })).id;
}

const chat = (caller, options = {}) =>
  caller.chat.completions.create({ model: MODEL, messages: [{ role: "user", content: GREET }], ...options });

async function collect(pages) {
  const found = [];
  for await (const item of await pages) found.push(item);
  return found;
}

async function waitFor(read, ...statuses) {
  const deadline = Date.now() + RUN_SECONDS * 1000;
  for (;;) {
    const found = await read();
    if (statuses.includes(found.status)) return found;
    assert.ok(Date.now() < deadline, JSON.stringify(found));
    await sleep(500);
  }
}

async function refuse(kind, request, code) {
  try {
    await request();
  } catch (error) {
    assert.equal(error.constructor, kind);
    assert.ok(error.requestID);
    if (code) assert.equal(error.code, code);
    return;
  }
  assert.fail(`no ${kind.name}`);
}

await run({
  async files() {
    const file = await upload(ROWS, "fine-tune");
    assert.equal((await client.files.waitForProcessing(file, { pollInterval: 200 })).status, "processed");
    assert.equal(await (await client.files.content(file)).text(), asLines(ROWS).toString());
    assert.ok((await collect(client.files.list({ purpose: "fine-tune" }))).some(({ id }) => id === file));
    const faulty = await client.files.create({ file: await toFile(Buffer.from('{"messages": []}\n'), "rows.jsonl"), purpose: "fine-tune" });
    assert.equal((await client.files.retrieve(faulty.id)).status, "error");
    assert.equal((await client.files.delete(faulty.id)).deleted, true);
  },
  async uploads() {
    const content = asLines(ROWS);
    const begun = await client.uploads.create({ bytes: content.length, filename: "rows.jsonl", mime_type: "application/jsonl", purpose: "fine-tune" });
    const parts = [];
    // In the reverse order: the completion states the order.
    for (const half of [content.subarray(500), content.subarray(0, 500)]) {
      parts.unshift((await client.uploads.parts.create(begun.id, { data: await toFile(half, "part") })).id);
    }
    const md5 = createHash("md5").update(content).digest("hex");
    const done = await client.uploads.complete(begun.id, { part_ids: parts, md5 });
    assert.equal(done.status, "completed");
    assert.equal(await (await client.files.content(done.file.id)).text(), content.toString());
  },
  async fine_tuning() {
    const job = await client.fineTuning.jobs.create({
      model: BASE,
      training_file: await upload(ROWS, "fine-tune"),
      method: { type: "supervised", supervised: { hyperparameters: { n_epochs: 1, batch_size: 2 } } },
      suffix: "matrix",
      seed: 1,
    });
    assert.ok((await collect(client.fineTuning.jobs.list())).some(({ id }) => id === job.id));
    const done = await waitFor(() => client.fineTuning.jobs.retrieve(job.id), "succeeded", "failed", "cancelled");
    assert.deepEqual([done.status, done.error?.message], ["succeeded", undefined]);
    const events = await collect(client.fineTuning.jobs.listEvents(job.id));
    assert.ok(events.some(({ message }) => message.includes("Created fine-tuning job")));
    const checkpoints = await collect(client.fineTuning.jobs.checkpoints.list(job.id));
    const patient = connect(TRAINING_API_KEY, { maxRetries: 20 });
    for (const model of [done.fine_tuned_model, checkpoints[0].fine_tuned_model_checkpoint]) {
      await chat(patient, { model, max_tokens: 4 });
    }
  },
  async batches() {
    const body = { model: MODEL, messages: [{ role: "user", content: GREET }], temperature: 0 };
    const line = { custom_id: "a", method: "POST", url: "/v1/chat/completions", body };
    const input_file_id = await upload([line, { ...line, custom_id: "b" }], "batch");
    const batch = await client.batches.create({ input_file_id, endpoint: "/v1/chat/completions", completion_window: "24h" });
    const done = await waitFor(() => client.batches.retrieve(batch.id), "completed", "failed", "expired", "cancelled");
    assert.deepEqual([done.status, done.request_counts.completed], ["completed", 2]);
    const output = await (await client.files.content(done.output_file_id)).text();
    const texts = output.trim().split("\n").map((row) => JSON.parse(row).response.body.choices[0].message.content);
    assert.deepEqual(texts, [GREETING, GREETING]);
    assert.ok((await collect(client.batches.list())).some(({ id }) => id === batch.id));
  },
  async evals() {
    const item_schema = { type: "object", properties: { said: { type: "string" }, meant: { type: "string" } } };
    const grader = { type: "string_check", name: "exact", operation: "eq", input: "{{ item.said }}", reference: "{{ item.meant }}" };
    const defined = await client.evals.create({ name: "matrix", data_source_config: { type: "custom", item_schema }, testing_criteria: [grader] });
    const content = [{ item: { said: "a", meant: "a" } }, { item: { said: "a", meant: "b" } }];
    const run = await client.evals.runs.create(defined.id, { name: "run", data_source: { type: "jsonl", source: { type: "file_content", content } } });
    const done = await waitFor(() => client.evals.runs.retrieve(run.id, { eval_id: defined.id }), "completed", "failed", "canceled");
    assert.deepEqual([done.status, done.result_counts.passed, done.result_counts.failed], ["completed", 1, 1]);
    const items = await collect(client.evals.runs.outputItems.list(run.id, { eval_id: defined.id }));
    assert.deepEqual(items.map(({ status }) => status).sort(), ["fail", "pass"]);
    assert.equal((await client.evals.delete(defined.id)).deleted, true);
  },
  async models() {
    assert.ok((await collect(client.models.list())).some(({ id }) => id === MODEL));
    assert.equal((await client.models.retrieve(MODEL)).id, MODEL);
  },
  async errors() {
    const maxRetries = 0;
    const once = connect(TRAINING_API_KEY, { maxRetries });
    const [inference, slow, none] = [INFERENCE_API_KEY, SLOW_API_KEY, "none"].map((key) => connect(key, { maxRetries }));
    await refuse(OpenAI.NotFoundError, () => once.files.retrieve("file-none"), "file_not_found");
    await refuse(OpenAI.NotFoundError, () => chat(once, { model: "none" }), "model_not_found");
    await refuse(OpenAI.BadRequestError, () => chat(once, { bananas: 1 }), "invalid_request");
    await refuse(OpenAI.BadRequestError, () => once.fineTuning.jobs.create({ model: BASE, training_file: "file-none" }));
    await refuse(OpenAI.AuthenticationError, () => chat(none), "invalid_api_key");
    await refuse(OpenAI.AuthenticationError, () => none.files.list());
    await refuse(OpenAI.PermissionDeniedError, () => inference.files.list());
    await refuse(OpenAI.InternalServerError, () => chat(once, { model: "unavailable" }));
    // The limit is per minute: another program may have used it.
    await chat(slow).catch(() => {});
    await refuse(OpenAI.RateLimitError, () => chat(slow));
  },
  async pages() {
    const ids = [];
    for (let number = 0; number < 5; number++) ids.push(await upload([{ number, of: randomUUID() }], "user_data"));
    const found = (await collect(client.files.list({ purpose: "user_data", limit: 2, order: "asc" }))).map(({ id }) => id);
    assert.deepEqual(found.slice(-5), ids);
    assert.equal(new Set(found).size, found.length);
  },
  async webhooks() {
    const received = [];
    const server = createServer((request, response) => {
      const chunks = [];
      request.on("data", (chunk) => chunks.push(chunk));
      request.on("end", () => {
        received.push([request.headers, Buffer.concat(chunks).toString()]);
        response.writeHead(204).end();
      });
    });
    await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
    const body = { name: "matrix", url: `http://127.0.0.1:${server.address().port}/`, event_types: ["fine_tuning.job.cancelled"] };
    const endpoint = await client.post("/webhook_endpoints", { body });
    const job = await client.fineTuning.jobs.create({ model: BASE, training_file: await upload(ROWS, "fine-tune") });
    await client.fineTuning.jobs.cancel(job.id);
    for (let wait = 0; received.length === 0 && wait < RUN_SECONDS * 5; wait++) await sleep(200);
    const [headers, payload] = received[0];
    const event = await client.webhooks.unwrap(payload, headers, endpoint.signing_secret);
    assert.deepEqual([event.type, event.data.id], ["fine_tuning.job.cancelled", job.id]);
    await client.delete(`/webhook_endpoints/${endpoint.id}`);
    server.close();
    server.closeAllConnections();
  },
  async abort() {
    // The key allows one request at a time.
    const single = connect(SINGLE_API_KEY, { maxRetries: 0 });
    const stream = await chat(single, { stream: true, max_tokens: 900, logit_bias: { [END_TOKEN]: -100 } });
    for await (const chunk of stream) {
      assert.ok(chunk.id);
      await refuse(OpenAI.RateLimitError, () => chat(single, { max_tokens: 1 }));
      break; // It aborts the request.
    }
    const began = Date.now();
    await chat(connect(SINGLE_API_KEY, { maxRetries: 3 }), { max_tokens: 1 });
    assert.ok(Date.now() - began < 5000);
  },
  async retries() {
    // Our proxy sends the request on, and closes the connection before the response.
    let attempts = 0;
    const count = (url, init) => {
      attempts++;
      return fetch(url, init);
    };
    const lossy = connect(TRAINING_API_KEY, { baseURL: LOSING_URL, maxRetries: 2, fetch: count });
    const mark = randomUUID();
    const body = { model: BASE, training_file: await upload(ROWS, "fine-tune"), metadata: { mark } };
    const job = await lossy.fineTuning.jobs.create(body, { headers: { "x-lose-response": mark } });
    const jobs = await collect(client.fineTuning.jobs.list());
    await client.fineTuning.jobs.cancel(job.id);
    assert.equal(attempts, 2);
    assert.deepEqual(jobs.filter(({ metadata }) => metadata?.mark === mark).map(({ id }) => id), [job.id]);
  },
});
