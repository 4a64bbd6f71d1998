// The page's half of updates, in node: `node web_client.mjs MODULE ROOT STATE` reads one JSON request a line, {url,
// stallMs}, {delta, base, size, out} or {blob, bytes, out}, and answers each with one line.

import { readFile, rename, writeFile } from "node:fs/promises";
import { openAsBlob } from "node:fs";
import { createInterface } from "node:readline";

const [module, root, state] = process.argv.slice(2);
const { TufClient } = await import(`${module}/updates/tuf.js`);
const { pieces } = await import(`${module}/download.js`);
const { applied } = await import(`${module}/updates/delta.js`);
const { readRelease, takesCanary } = await import(`${module}/updates/release.js`);

const files = {
  read: (name) => readFile(`${state}/${name}`).catch((error) => (error.code === "ENOENT" ? null : Promise.reject(error))),
  write: async (name, bytes) => {
    await writeFile(`${state}/${name}.part`, bytes);
    await rename(`${state}/${name}.part`, `${state}/${name}`);
  },
};

async function answer({ url, stallMs, delta, base, size, out, canary, blob, bytes }) {
  if (blob) {
    const parts = [];
    for await (const piece of pieces(blob, bytes, 0, () => {})) parts.push(piece);
    return { bytes: await writeFile(out, Buffer.concat(parts)).then(() => bytes) };
  }
  if (canary) return canary.map(([id, digest, share]) => takesCanary(id, digest, share));
  if (delta) {
    const parts = [];
    for await (const piece of applied(await openAsBlob(delta), base ? await openAsBlob(base) : null, size)) parts.push(piece);
    await writeFile(out, Buffer.concat(parts));
    return { bytes: parts.reduce((sum, piece) => sum + piece.length, 0), most: Math.max(0, ...parts.map((piece) => piece.length)) };
  }
  const client = new TufClient(url, { root: await readFile(root), files, stallMs });
  const targets = await client.refresh();
  const release = readRelease(await client.target("tiny/linux-x64/champion.json"), "tiny", "linux-x64");
  return { targets: Object.keys(targets).sort(), version: release.version, root: client.root.version };
}

for await (const line of createInterface({ input: process.stdin })) {
  const said = await answer(JSON.parse(line)).then((result) => ({ result }), ({ code, message }) => ({ error: { code, message } }));
  console.log(JSON.stringify(said));
}
