// The official x402 seller for Express, version 1 or 2 of the protocol. Settings come in the
// environment; it prints its port.
import express from "express";

const { FACILITATOR, NETWORK, PAY_TO, PRICE, VERSION } = process.env;
const price = `$${PRICE}`;
const sold = ["GET /paid", "POST /api/tools/mask-refinement", "GET /stream"];
const sell = (terms) => Object.fromEntries(sold.map((route) => [route, terms]));

async function version1() {
  const { paymentMiddleware } = await import("x402-express");
  return paymentMiddleware(PAY_TO, sell({ price, network: "base" }), { url: FACILITATOR });
}

async function version2() {
  const { HTTPFacilitatorClient } = await import("@x402/core/server");
  const { ExactEvmScheme } = await import("@x402/evm/exact/server");
  const { paymentMiddleware, x402ResourceServer } = await import("@x402/express");
  const server = new x402ResourceServer(new HTTPFacilitatorClient({ url: FACILITATOR }));
  server.register(NETWORK, new ExactEvmScheme());
  const accepts = { scheme: "exact", price, network: NETWORK, payTo: PAY_TO };
  return paymentMiddleware(sell({ accepts }), server);
}

const app = express();
app.use(VERSION === "1" ? await version1() : await version2());
app.use(express.json());
app.get("/paid", (_, response) => response.json({ paid: "content" }));
app.get("/free", (_, response) => response.json({ free: "content" }));
app.post("/api/tools/mask-refinement", (request, response) =>
  response.json({ echo: request.body }),
);
app.get("/stream", (_, response) => {
  for (let number = 0; number < 5; number += 1) response.write(`chunk ${number}\n`);
  response.end();
});
const listener = app.listen(0, "127.0.0.1", () => console.log(`port ${listener.address().port}.`));
