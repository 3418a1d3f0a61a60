// Runs an ONNX file in onnxruntime-web: `node web.mjs FILE INPUT OUTPUT DIMENSIONS`. Numbers are float32, little-endian.
// After "ready", each line on stdin is a run, answered by "done"; the first output is in OUTPUT.
import { createRequire } from "node:module";
import { readFileSync, writeFileSync } from "node:fs";
import { createInterface } from "node:readline";

const ort = createRequire(process.cwd() + "/")("onnxruntime-web");
const [file, input, output, dimensions] = process.argv.slice(2);
ort.env.wasm.numThreads = 1;
const session = await ort.InferenceSession.create(readFileSync(file), { executionProviders: ["wasm"] });
const numbers = new Float32Array(new Uint8Array(readFileSync(input)).buffer);
const image = new ort.Tensor("float32", numbers, dimensions.split(",").map(Number));
console.log("ready");
for await (const _ of createInterface({ input: process.stdin })) {
  const results = await session.run({ [session.inputNames[0]]: image });
  const { data } = results[session.outputNames[0]];
  writeFileSync(output, new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
  console.log("done");
}
