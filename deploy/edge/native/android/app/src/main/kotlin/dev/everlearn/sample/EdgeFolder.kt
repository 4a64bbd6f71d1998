package dev.everlearn.sample

import java.io.File
import java.security.MessageDigest
import org.json.JSONArray
import org.json.JSONObject

/** A prompt's tokens, and the largest logits after it: `ids` and `logits` belong together, the largest first. */
class Probe(val tokens: IntArray, val ids: IntArray, val logits: DoubleArray)

/** A folder that `everlearn deploy edge MODEL --target android` made. */
class EdgeFolder(val directory: File) {
    private val manifest: JSONObject

    init {
        val file = File(directory, "edge.json")
        require(file.isFile) { "$directory holds no edge folder: it has no edge.json" }
        manifest = JSONObject(file.readText())
        require(manifest.getString("format") == "everlearn-edge/1") { "$file has another format" }
        val runtime = manifest.getJSONObject("runtime").getString("name")
        require(runtime == "onnxruntime-genai") { "$directory is for $runtime: make one with --target android" }
        require(File(directory, "genai_config.json").isFile) { "$directory has no genai_config.json" }
    }

    val context: Int get() = manifest.getJSONObject("graph").getInt("context")
    val bound: Double get() = manifest.getDouble("bound")

    val probes: List<Probe>
        get() = manifest.getJSONArray("probes").objects().map { probe ->
            Probe(
                probe.getJSONArray("token_ids").ints(),
                probe.getJSONArray("top_ids").ints(),
                probe.getJSONArray("top_logits").doubles(),
            )
        }

    /** Reads every byte; throws naming the file that is not what was written. */
    fun verify() {
        for (entry in manifest.getJSONArray("files").objects()) {
            val file = File(directory, entry.getString("path"))
            require(file.canonicalPath.startsWith(directory.canonicalPath + File.separator)) { "$file lies outside" }
            require(file.isFile && file.length() == entry.getLong("bytes")) { "$file is not the file that was written" }
            require(sha256(file) == entry.getString("sha256")) { "$file is not the file that was written" }
        }
    }
}

private fun sha256(file: File): String {
    val digest = MessageDigest.getInstance("SHA-256")
    file.inputStream().use { stream ->
        val buffer = ByteArray(1 shl 16)
        while (true) {
            val count = stream.read(buffer)
            if (count < 0) break
            digest.update(buffer, 0, count)
        }
    }
    return digest.digest().joinToString("") { "%02x".format(it) }
}

private fun JSONArray.objects() = List(length()) { getJSONObject(it) }

private fun JSONArray.ints() = IntArray(length()) { getInt(it) }

private fun JSONArray.doubles() = DoubleArray(length()) { getDouble(it) }
