package dev.everlearn.sample

import android.app.Activity
import android.os.Bundle
import android.widget.Button
import android.widget.EditText
import android.widget.LinearLayout
import android.widget.ScrollView
import android.widget.TextView
import java.io.File
import java.util.concurrent.Executors

/** A text, and its continuation. The folder is the app's own `files/model` on the device's storage. */
class MainActivity : Activity() {
    private val worker = Executors.newSingleThreadExecutor()
    private var model: EdgeModel? = null

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        val prompt = EditText(this).apply { setText("The capital of France is") }
        val button = Button(this).apply { text = "Continue" }
        val answer = TextView(this)
        button.setOnClickListener {
            val asked = prompt.text.toString()
            answer.text = ""
            button.isEnabled = false
            worker.execute {
                try {
                    opened().complete(asked, tokens = 64) { piece -> runOnUiThread { answer.append(piece) } }
                } catch (error: Exception) {
                    runOnUiThread { answer.text = error.message }
                } finally {
                    runOnUiThread { button.isEnabled = true }
                }
            }
        }
        val page = LinearLayout(this).apply {
            orientation = LinearLayout.VERTICAL
            fitsSystemWindows = true
            listOf(prompt, button, ScrollView(this@MainActivity).apply { addView(answer) }).forEach(::addView)
        }
        setContentView(page)
    }

    /** On the worker: verified, loaded and checked once. */
    private fun opened(): EdgeModel = model ?: run {
        val folder = EdgeFolder(File(checkNotNull(getExternalFilesDir(null)), "model"))
        folder.verify()
        val loaded = EdgeModel(folder)
        try {
            loaded.checkProbes()
        } catch (error: Exception) {
            loaded.close()
            throw error
        }
        loaded.also { model = it }
    }

    override fun onDestroy() {
        super.onDestroy()
        worker.execute { model?.close() }
        worker.shutdown()
    }
}
