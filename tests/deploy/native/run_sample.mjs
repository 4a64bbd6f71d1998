// node run_sample.mjs EDGE_JS NODE_MODULES FOLDER IDS TOKENS: what the React Native sample makes of a folder, with
// onnxruntime-web in place of the package that only phones have.
import { createHash } from "node:crypto";
import { readFile, readdir, stat } from "node:fs/promises";
import { basename } from "node:path";
import { pathToFileURL } from "node:url";

const [edge, modules, folder, ids, tokens] = process.argv.slice(2);
const { Decoder, checkProbes, complete, openFolder } = await import(pathToFileURL(edge));
const ort = await import(pathToFileURL(`${modules}/onnxruntime-web/dist/ort.wasm.min.mjs`));
ort.env.wasm.numThreads = 1;
ort.env.logLevel = "error";

const files = {
  text: (path) => readFile(path, "utf8"),
  sha256: async (path) => createHash("sha256").update(await readFile(path)).digest("hex"),
  bytes: async (path) => (await stat(path)).size,
};
try {
  const { manifest, graph } = await openFolder(files, folder);
  const weights = (await readdir(folder)).filter((name) => name.endsWith(".bin"));
  const externalData = await Promise.all(
    weights.map(async (name) => ({ path: basename(name), data: new Uint8Array(await readFile(`${folder}/${name}`)) })),
  );
  const session = await ort.InferenceSession.create(new Uint8Array(await readFile(graph)), { externalData });
  const decoder = new Decoder(ort, session, manifest);
  await checkProbes(decoder, manifest);
  console.log(JSON.stringify(await complete(decoder, manifest, JSON.parse(ids), Number(tokens))));
} catch (error) {
  console.log(error.message);
  process.exit(1);
}
