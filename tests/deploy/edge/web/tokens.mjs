// Reads {module, tokenizer, config, template, texts, chats} from stdin; prints ids, decoded texts, streamed texts, prompts,
// and where the tokens are in their texts.

import { readFileSync } from "node:fs";

const asked = JSON.parse(readFileSync(0, "utf-8"));
const { ChatTemplate, encodeChat, TextStream, TextTokenizer } = await import(asked.module);
const tokenizer = new TextTokenizer(asked.tokenizer, asked.config);
const template = asked.template && new ChatTemplate(asked.template, asked.config);

function streamed(ids) {
  const stream = new TextStream(tokenizer);
  return ids.map((id) => stream.push(id)).join("") + stream.end();
}

function placed(text) {
  try {
    const { ids, pieces } = tokenizer.withMarks(tokenizer.pieces(text));
    return { ids, places: pieces.map((piece) => (piece ? [piece.start, piece.end] : [0, 0])) };
  } catch (error) {
    return { error: error.message };
  }
}

const encoded = asked.texts.map((text) => tokenizer.encode(text));
console.log(JSON.stringify({
  ids: encoded,
  decoded: encoded.map((ids) => tokenizer.decode(ids)),
  streamed: encoded.map(streamed),
  prompts: asked.chats.map((messages) => template.render(messages)),
  placed: asked.texts.map(placed),
  chats: asked.chats.map((messages) => encodeChat(tokenizer, template, messages)),
}));
