// A program that was written for Replicate's webhooks: it checks the signature with Replicate's own client, downloads
// what `output` names, and prints one line of JSON for each delivery. PORT is printed first.
import { createHash } from "node:crypto";
import { createServer } from "node:http";
import { validateWebhook } from "replicate";

const secret = process.env.WEBHOOK_SECRET;

function urls(output) {
  if (typeof output === "string") return /^https?:\/\/\S+$/.test(output) ? [output] : [];
  return output && typeof output === "object" ? Object.values(output).flatMap(urls) : [];
}

createServer(async (incoming, answer) => {
  const chunks = [];
  for await (const chunk of incoming) chunks.push(chunk);
  const request = new Request(`http://localhost${incoming.url}`, {
    method: "POST",
    headers: incoming.headers,
    body: Buffer.concat(chunks),
  });
  const valid = await validateWebhook(request.clone(), secret);
  const prediction = await request.json();
  const digests = [];
  for (const url of urls(prediction.output)) {
    const file = Buffer.from(await (await fetch(url)).arrayBuffer());
    digests.push(createHash("sha256").update(file).digest("hex"));
  }
  console.log(JSON.stringify({ valid, prediction, digests }));
  answer.writeHead(valid ? 200 : 401).end();
}).listen(0, "127.0.0.1", function () {
  console.log(this.address().port);
});
