import { Tokenizer } from "@huggingface/tokenizers";
import * as RNFS from "@dr.pogodin/react-native-fs";
import * as ort from "onnxruntime-react-native";
import { useRef, useState } from "react";
import { Button, SafeAreaView, ScrollView, Text, TextInput } from "react-native";

import { Decoder, checkProbes, complete, openFolder } from "./edge.js";

const FILES = {
  text: (path) => RNFS.readFile(path, "utf8"),
  sha256: (path) => RNFS.hash(path, "sha256"),
  bytes: async (path) => Number((await RNFS.stat(path)).size),
};
const FOLDER = `${RNFS.DocumentDirectoryPath}/model`;

async function open() {
  const folder = await openFolder(FILES, FOLDER);
  const session = await ort.InferenceSession.create(folder.graph);
  const decoder = new Decoder(ort, session, folder.manifest);
  await checkProbes(decoder, folder.manifest);
  return { ...folder, decoder, text: new Tokenizer(folder.tokenizer, folder.tokenizerConfig) };
}

/** A text, and its continuation. */
export default function App() {
  const opened = useRef(null);
  const [prompt, setPrompt] = useState("The capital of France is");
  const [answer, setAnswer] = useState("");
  const [busy, setBusy] = useState(false);

  async function run() {
    setBusy(true);
    setAnswer("");
    try {
      opened.current ??= await open();
      const { decoder, manifest, text } = opened.current;
      const show = (ids) => setAnswer(text.decode(ids, { skip_special_tokens: true }));
      await complete(decoder, manifest, text.encode(prompt).ids, 64, show);
    } catch (error) {
      setAnswer(error.message);
    } finally {
      setBusy(false);
    }
  }

  return (
    <SafeAreaView>
      <TextInput value={prompt} onChangeText={setPrompt} multiline />
      <Button title="Continue" onPress={run} disabled={busy} />
      <ScrollView>
        <Text>{answer}</Text>
      </ScrollView>
    </SafeAreaView>
  );
}
