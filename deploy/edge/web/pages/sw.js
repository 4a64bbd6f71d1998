// Keeps the page's own files, so that it opens without a network, and isolates it, so that it may use threads. The model's
// files are not its business: everlearn_web keeps those itself. app_files.js names the files; it changes with every build.

importScripts("./app_files.js");

const CACHE = `everlearn-app ${APP.version}`;
const OURS = new Set([...APP.files, ...APP.later].map((path) => new URL(path, registration.scope).href));
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
  await cache.addAll(APP.files.map((path) => new Request(new URL(path, registration.scope), { cache: "no-cache" })));
  await self.skipWaiting();
}

async function activate() {
  for (const name of await caches.keys()) if (name.startsWith("everlearn-app ") && name !== CACHE) await caches.delete(name);
  await self.clients.claim();
}

async function respond(url) {
  const cache = await caches.open(CACHE);
  let response = await cache.match(url);
  if (!response) {
    response = await fetch(url);
    if (response.ok) await cache.put(url, response.clone());
  }
  if (!ISOLATES) return response;
  const headers = new Headers(response.headers);
  for (const [name, value] of Object.entries(ISOLATED)) headers.set(name, value);
  return new Response(response.body, { status: response.status, statusText: response.statusText, headers });
}
