// Answers prompts, one JSON string a line of standard input, by llama.cpp: a JSON object a line.
//     node llama_cpp.mjs MODEL.gguf THREADS NUM_TOKENS
import {createInterface} from "node:readline";
import {getLlama} from "node-llama-cpp";

const [modelPath, threads, numTokens] = process.argv.slice(2);
const llama = await getLlama({gpu: false, maxThreads: Number(threads), build: "never"});
const model = await llama.loadModel({modelPath});
const context = await model.createContext({contextSize: 2048, threads: Number(threads)});
const sequence = context.getSequence();
console.log(JSON.stringify({version: llama.llamaCppRelease.release, cpu: llama.systemInfo}));
for await (const line of createInterface({input: process.stdin})) {
  await sequence.clearHistory();
  const times = [];
  const tokens = [];
  for await (const token of sequence.evaluate(model.tokenize(JSON.parse(line), true), {temperature: 0})) {
    times.push(performance.now());
    tokens.push(token);
    if (tokens.length == Number(numTokens) || model.isEogToken(token)) break;
  }
  const tpot = (times.at(-1) - times[0]) / (times.length - 1);
  console.log(JSON.stringify({tpot_ms: tpot, text: model.detokenize(tokens)}));
}
process.exit(0);
