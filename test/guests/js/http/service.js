// An HTTP service written as for a browser's service worker: `/`, `/echo`, `/json`, `/env`, `/log`, `/throw`.

addEventListener("fetch", (event) => event.respondWith(serve(event.request)));

async function serve(request) {
  switch (new URL(request.url).pathname) {
    case "/":
      return new Response("hello from JavaScript\n");
    case "/echo":
      return new Response(request.body, { headers: { "content-type": "application/octet-stream" } });
    case "/json":
      return Response.json({ method: request.method, numbers: [1, 2, 3].map((n) => n * n) });
    case "/slow":
      await new Promise((resolve) => setTimeout(resolve, 200));
      return new Response("slow\n");
    case "/log":
      console.log("on stdout");
      console.error("on stderr");
      return new Response("logged\n");
    case "/throw":
      throw new Error("on purpose");
    default:
      return new Response("no such route\n", { status: 404 });
  }
}
