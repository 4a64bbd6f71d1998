package dev.everlearn.sample

import ai.onnxruntime.genai.Generator
import ai.onnxruntime.genai.GeneratorParams
import ai.onnxruntime.genai.Model
import ai.onnxruntime.genai.Tokenizer

/** The model of a verified folder. One thread uses it at a time. */
class EdgeModel(private val folder: EdgeFolder) : AutoCloseable {
    private val model = Model(folder.directory.path)
    private val tokenizer = Tokenizer(model)

    /** Throws where this phone's first choice is one that the probes, within their bound, rule out. */
    fun checkProbes() {
        for (probe in folder.probes) {
            val least = probe.logits[0] - 2 * folder.bound
            val possible = probe.ids.filterIndexed { index, _ -> probe.logits[index] >= least }
            val found = parameters(probe.tokens.size + 1).use { parameters ->
                Generator(model, parameters).use { generator ->
                    generator.appendTokens(probe.tokens)
                    generator.generateNextToken()
                    generator.getLastTokenInSequence(0)
                }
            }
            check(possible.size == probe.ids.size || found in possible) {
                "this phone computes other numbers than the probes of ${folder.directory}: it is not used"
            }
        }
    }

    /** Continues `prompt` greedily by at most `tokens`; `onText` gets what is certain so far. */
    fun complete(prompt: String, tokens: Int, onText: (String) -> Unit) {
        tokenizer.encode(prompt).use { encoded ->
            val length = encoded.getSequence(0).size
            require(length < folder.context) { "the prompt has $length tokens, and ${folder.context} are kept" }
            parameters(minOf(length + tokens, folder.context)).use { parameters ->
                Generator(model, parameters).use { generator ->
                    generator.appendTokenSequences(encoded)
                    tokenizer.createStream().use { stream ->
                        while (!generator.isDone) {
                            generator.generateNextToken()
                            onText(stream.decode(generator.getLastTokenInSequence(0)))
                        }
                    }
                }
            }
        }
    }

    private fun parameters(length: Int) = GeneratorParams(model).apply {
        setSearchOption("max_length", length.toDouble())
        setSearchOption("do_sample", false)
    }

    override fun close() {
        tokenizer.close()
        model.close()
    }
}
