// Virtual users that call the orchestrator one request after the other, half of them by
// Generate and half by GenerateStream:
//
//   k6 run --vus 16 --duration 30s deploy/k6/generate.js
//
// Settings by environment (`-e NAME=VALUE`): ADDRESS, MAX_NEW_TOKENS,
// NUM_SPECULATIVE_TOKENS (unset: the server's policy), CHATS (a file with a JSON list of texts,
// which are asked with a number in front), PROMPTS (the same, to be continued as they are; with
// neither of them no two requests are the same, but resemble each other), SUMMARY (a file for
// the figures).
// Fails, with status 99, if one request does.

import { Client, StatusOK, Stream } from "k6/net/grpc";
import { Counter, Rate, Trend } from "k6/metrics";

const ADDRESS = __ENV.ADDRESS || "127.0.0.1:50051";
const SERVICE = "outrider.v1.GenerationService";
const CHATS = __ENV.CHATS ? JSON.parse(open(__ENV.CHATS)) : null;
const PROMPTS = __ENV.PROMPTS ? JSON.parse(open(__ENV.PROMPTS)) : null;
const SUBJECTS = ["a heron", "a bicycle", "the tides", "a sonnet", "rust", "a lighthouse"];

const wall = new Trend("outrider_wall", true); // as the client sees it
const ttft = new Trend("outrider_ttft", true); // this and the next as the server reports them
const tpot = new Trend("outrider_tpot", true);
const tokens = new Counter("outrider_tokens");
const errors = new Rate("outrider_errors");

export const options = {
  // The second is for runs in which nothing was ever answered.
  thresholds: { outrider_errors: ["rate==0"], outrider_tokens: ["count>0"] },
  summaryTrendStats: ["avg", "min", "med", "p(95)", "p(99)", "max"],
};

const client = new Client();
client.load(["../../protos"], "outrider/v1/generation.proto");
let isConnected = false;

function connect() {
  if (!isConnected) {
    client.connect(ADDRESS, { plaintext: true });
    isConnected = true;
  }
}

// Only with PROMPTS may a prompt be spared its reading, by another that begins like it.
function text() {
  const index = __VU + __ITER;
  if (CHATS) {
    const content = `${__VU}-${__ITER}. ${CHATS[index % CHATS.length]}`;
    return { messages: [{ role: "user", content }] };
  }
  if (PROMPTS) {
    return { prompt: PROMPTS[index % PROMPTS.length] };
  }
  const subject = SUBJECTS[__ITER % SUBJECTS.length];
  return { prompt: `${__VU}-${__ITER}. What I know about ${subject}:` };
}

function request() {
  const message = {
    ...text(),
    max_new_tokens: Number(__ENV.MAX_NEW_TOKENS || 32),
    ignore_eos: true,
  };
  if (__ENV.NUM_SPECULATIVE_TOKENS) {
    message.num_speculative_tokens = Number(__ENV.NUM_SPECULATIVE_TOKENS);
  }
  return message;
}

function record(began, result) {
  const wanted = Number(__ENV.MAX_NEW_TOKENS || 32);
  const isWhole = Boolean(result) && result.usage.numOutputTokens === wanted;
  errors.add(!isWhole);
  if (!isWhole) {
    return;
  }
  wall.add(Date.now() - began);
  ttft.add(Number(result.latency.ttftNs) / 1e6);
  tpot.add(Number(result.latency.tpotNs) / 1e6);
  tokens.add(result.usage.numOutputTokens);
}

function generate() {
  const began = Date.now();
  const response = client.invoke(`${SERVICE}/Generate`, request(), { timeout: "120s" });
  if (response.status !== StatusOK) {
    console.error(`Generate: ${response.status} ${response.error && response.error.message}`);
  }
  record(began, response.status === StatusOK ? response.message : null);
}

async function generateStream() {
  const began = Date.now();
  const stream = new Stream(client, `${SERVICE}/GenerateStream`, { timeout: "120s" });
  const result = await new Promise((resolve) => {
    let last = null;
    stream.on("data", (message) => {
      last = message.result || last;
    });
    stream.on("error", (error) => {
      console.error(`GenerateStream: ${error.code} ${error.message}`);
      resolve(null);
    });
    stream.on("end", () => resolve(last));
    stream.write(request());
    stream.end();
  });
  record(began, result);
}

export default async function () {
  try {
    connect();
    if ((__VU + __ITER) % 2) {
      generate();
    } else {
      await generateStream();
    }
  } catch (error) {
    errors.add(true);
    console.error(String(error));
  }
}

export function handleSummary(data) {
  return __ENV.SUMMARY ? { [__ENV.SUMMARY]: JSON.stringify(data) } : {};
}
