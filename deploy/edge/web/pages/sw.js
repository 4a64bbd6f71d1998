// Keeps the page's own files, so that it opens without a network, and isolates it, so that it may use threads. The model's
// files are not its business: everlearn_web keeps those itself. app_files.js names the files and their
// digests; it changes with every build. A file that is not of that build, as in the middle of an upload, is not kept.

importScripts("./app_files.js");

const CACHE = `everlearn-app ${APP.version}`;
const OURS = new Map(Object.entries({ ...APP.files, ...APP.later }).map(([path, integrity]) => [new URL(path, registration.scope).href, integrity]));
const ISOLATED = { "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp", "Cross-Origin-Resource-Policy": "same-origin" };
// Threads have failed to start on iOS (onnxruntime#11679): there the page keeps to one.
const ISOLATES = !/iPhone|iPad|iPod/.test(navigator.userAgent);

self.addEventListener("install", (event) => event.waitUntil(install()));
self.addEventListener("activate", (event) => event.waitUntil(activate()));
self.addEventListener("fetch", (event) => {
  const url = event.request.url.split(/[?#]/)[0];
  if (event.request.method === "GET" && OURS.has(url)) event.respondWith(respond(url));
});

async function install() {
  const cache = await caches.open(CACHE);
  const urls = Object.keys(APP.files).map((path) => new URL(path, registration.scope).href);
  await verified((mode) => cache.addAll(urls.map((url) => asked(url, mode))));
  await self.skipWaiting();
}

/** For a file of this very build: any other is a network error. */
function asked(url, cache) {
  return new Request(url, { cache, integrity: OURS.get(url) });
}

/** A server can say of an older file in the browser's cache that it has not changed: then it is asked for the whole. */
function verified(work) {
  return work("no-cache").catch(() => work("reload"));
}

async function activate() {
  for (const name of await caches.keys()) if (name.startsWith("everlearn-app ") && name !== CACHE) await caches.delete(name);
  await self.clients.claim();
}

async function respond(url) {
  const cache = await caches.open(CACHE);
  let response = await cache.match(url);
  if (!response) {
    response = await verified((mode) => fetch(asked(url, mode)));
    if (response.ok) await cache.put(url, response.clone());
  }
  if (!ISOLATES) return response;
  const headers = new Headers(response.headers);
  for (const [name, value] of Object.entries(ISOLATED)) headers.set(name, value);
  return new Response(response.body, { status: response.status, statusText: response.statusText, headers });
}
