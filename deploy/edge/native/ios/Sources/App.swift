import SwiftUI

@main
struct EverlearnApp: App {
    var body: some Scene { WindowGroup { ContentView() } }
}

/// A text, and its continuation. The folder is `model` among the app's documents.
struct ContentView: View {
    @State private var prompt = "The capital of France is"
    @State private var answer = ""
    @State private var busy = false

    var body: some View {
        VStack(alignment: .leading) {
            TextField("Text", text: $prompt, axis: .vertical).textFieldStyle(.roundedBorder)
            Button("Continue", action: complete).disabled(busy)
            ScrollView { Text(answer).frame(maxWidth: .infinity, alignment: .leading) }
        }
        .padding()
    }

    private func complete() {
        let asked = prompt
        answer = ""
        busy = true
        Task {
            do {
                try await Worker.shared.complete(asked, tokens: 64) { piece in
                    Task { @MainActor in answer += piece }
                }
            } catch {
                answer = error.localizedDescription
            }
            busy = false
        }
    }
}

/// Verifies, loads and checks the model once, and answers one request after another.
actor Worker {
    static let shared = Worker()
    private var model: EdgeModel?

    func complete(_ prompt: String, tokens: Int, onText: @Sendable (String) -> Void) throws {
        try opened().complete(prompt, tokens: tokens, onText: onText)
    }

    private func opened() throws -> EdgeModel {
        if let model { return model }
        let folder = try EdgeFolder(URL.documentsDirectory.appendingPathComponent("model"))
        try folder.verify()
        let loaded = try EdgeModel(folder)
        try loaded.checkProbes()
        model = loaded
        return loaded
    }
}
