// A client of the router in JavaScript: `npm install && node client.js [PROMPT] [HOST:PORT]`.
// It reads the protos as they are; nothing is generated.

import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const [prompt = "The with statement is used to", address = "127.0.0.1:7411"] = process.argv.slice(2);
const protos = fileURLToPath(new URL("../../protos", import.meta.url));
const definition = loader.loadSync("baton/v1/router.proto", {
  includeDirs: [protos], enums: String, defaults: true, oneofs: true, longs: Number,
});
const { RouterService } = grpc.loadPackageDefinition(definition).baton.v1;

const ms = (duration) => duration.seconds * 1e3 + duration.nanos / 1e6;

function report({ usage, timing, placement }) {
  const where = placement.prefillMode === "PREFILL_MODE_REMOTE" ? placement.prefillWorkerId : "local";
  console.log(
    `\n[${usage.completionTokens} tokens, TTFT ${ms(timing.ttft).toFixed(0)} ms, ` +
    `prefill ${where}, decode ${placement.decodeWorkerId}]`);
}

const router = new RouterService(address, grpc.credentials.createInsecure());
const stream = router.Generate(
  { text: prompt, samplingParams: { maxTokens: 48, temperature: 0 }, priority: "PRIORITY_HIGH" },
  { deadline: Date.now() + 60_000 });
stream.on("data", (response) => {
  if (response.part === "chunk") process.stdout.write(response.chunk.text);
  else report(response.complete);
});
stream.on("error", (error) => {
  // Details: ErrorInfo names the reason, RetryInfo when to come back (google.rpc in the trailers).
  console.error(`${grpc.status[error.code]}: ${error.details}`);
  process.exitCode = 1;
});
stream.on("end", () => router.close());
