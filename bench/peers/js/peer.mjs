// The AWS SDK for JavaScript v3: batches of ten from a file of ids, so many at once, one attempt each.
import { readFileSync } from "node:fs";
import { Agent as HttpAgent } from "node:http";
import { Agent as HttpsAgent } from "node:https";
import { CreateTaskCommand, SnowDeviceManagementClient } from "@aws-sdk/client-snow-device-management";
import { NodeHttpHandler } from "@smithy/node-http-handler";

const [url, path, workers] = process.argv.slice(2);
const ids = readFileSync(path, "utf8").split("\n").filter(Boolean);
const maxSockets = Number(workers);
const client = new SnowDeviceManagementClient({
  region: "us-west-2",
  endpoint: url,
  maxAttempts: 1,
  credentials: { accessKeyId: "bench", secretAccessKey: "bench" },
  requestHandler: new NodeHttpHandler({
    httpAgent: new HttpAgent({ keepAlive: true, maxSockets }),
    httpsAgent: new HttpsAgent({ keepAlive: true, maxSockets }),
  }),
});
const latencies = [];
let next = 0;

async function worker() {
  for (;;) {
    const first = next;
    next += 10;
    if (first >= ids.length) return;
    const began = performance.now();
    await client.send(
      new CreateTaskCommand({
        targets: ids.slice(first, first + 10),
        clientToken: String(first).padStart(64, "0"),
        command: { reboot: {} },
      }),
    );
    latencies.push(performance.now() - began);
  }
}

const cpu = process.cpuUsage();
const began = performance.now();
await Promise.all(Array.from({ length: maxSockets }, worker));
const spent = process.cpuUsage(cpu);
console.log(
  JSON.stringify({
    cpu_s: (spent.user + spent.system) / 1e6,
    wall_s: (performance.now() - began) / 1e3,
    latencies_ms: latencies,
  }),
);
