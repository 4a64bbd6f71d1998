// What both pages do first: keep their files for offline use, load the model, and show how far it is.

import { EverlearnWeb } from "./everlearn_web/index.js";

const one = (id) => document.getElementById(id);
const megabytes = (bytes) => (bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0);
const PHASES = { start: "Starting the model", check: "Checking its numbers" };

/** Loads the model beside the page into a client; the page's status, bar and retry button show how far it is. */
export async function start() {
  await keepOffline().catch((error) => console.warn(`the page will not open offline: ${error.message}`));
  for (;;) {
    try {
      const client = await EverlearnWeb.load(document.querySelector('meta[name="model"]').content, { onProgress: show, device: device() });
      one("bar").hidden = true;
      one("status").textContent = described(client);
      one("status").title = client.notice ?? client.backend.why;
      addEventListener("pagehide", () => client.close());
      return client;
    } catch (error) {
      console.warn(error);
      await retried(error);
    }
  }
}

function device() {
  return new URLSearchParams(location.search).get("device") ?? "auto";
}

function described({ model, version, backend, notice }) {
  const where = backend.device === "webgpu" ? "WebGPU" : `WebAssembly, ${backend.threads} thread${backend.threads > 1 ? "s" : ""}`;
  return `${model} ${version} · ${where}${backend.offline ? " · offline" : ""}${notice ? " · an update was refused" : ""}`;
}

function show({ phase, loaded, total }) {
  const bar = one("bar");
  bar.hidden = false;
  if (phase === "download") {
    bar.max = total;
    bar.value = loaded;
    one("status").textContent = `Downloading the model: ${megabytes(loaded)} of ${megabytes(total)} MB`;
  } else {
    bar.removeAttribute("value");
    one("status").textContent = `${PHASES[phase]}…`;
  }
}

function retried(error) {
  one("bar").hidden = true;
  one("status").textContent = error.message;
  one("status").dataset.error = error.code ?? "runtime";
  one("retry").hidden = false;
  return new Promise((resolve) => {
    one("retry").onclick = () => {
      one("retry").hidden = true;
      delete one("status").dataset.error;
      resolve();
    };
  });
}

/** Registers the service worker; the first time, loads the page once more, under it, so that it may use threads. */
async function keepOffline() {
  if (!("serviceWorker" in navigator)) return;
  const first = !navigator.serviceWorker.controller;
  const { installing } = await navigator.serviceWorker.register("./sw.js", { updateViaCache: "none" });
  await Promise.race([navigator.serviceWorker.ready, refused(installing)]);
  const again = first && !self.crossOriginIsolated && !sessionStorage.getItem("everlearn-again");
  if (!again) return;
  sessionStorage.setItem("everlearn-again", "1");
  location.reload();
  await new Promise(() => {});
}

/** Rejects if the service worker does not get its files: `ready` would wait forever. */
function refused(worker) {
  return new Promise((_, reject) => {
    const check = () => worker?.state === "redundant" && reject(new Error("its files did not come, or are not of one build"));
    worker?.addEventListener("statechange", check);
    check();
  });
}
