import CryptoKit
import Foundation

struct EdgeError: LocalizedError {
    let errorDescription: String?

    init(_ message: String) { errorDescription = message }
}

/// edge.json, as far as this app reads it. Keys are those of the file.
struct EdgeManifest: Decodable {
    struct File: Decodable { let path: String; let bytes: Int; let sha256: String }
    struct Runtime: Decodable { let name: String }
    struct Graph: Decodable { let context: Int }
    /// A prompt's tokens, and the largest logits after it, the largest first.
    struct Probe: Decodable { let token_ids: [Int32]; let top_ids: [Int32]; let top_logits: [Double] }

    let format: String
    let runtime: Runtime
    let graph: Graph
    let files: [File]
    let probes: [Probe]
    let bound: Double
}

/// A folder that `everlearn deploy edge MODEL --target ios` made.
struct EdgeFolder {
    let directory: URL
    let manifest: EdgeManifest

    init(_ directory: URL) throws {
        self.directory = directory.standardizedFileURL
        guard let content = try? Data(contentsOf: directory.appendingPathComponent("edge.json")) else {
            throw EdgeError("\(directory.path) holds no edge folder: it has no edge.json")
        }
        manifest = try JSONDecoder().decode(EdgeManifest.self, from: content)
        guard manifest.format == "everlearn-edge/1" else { throw EdgeError("edge.json has another format") }
        guard manifest.runtime.name == "onnxruntime-genai" else {
            throw EdgeError("the folder is for \(manifest.runtime.name): make one with --target ios")
        }
        let config = directory.appendingPathComponent("genai_config.json").path
        guard FileManager.default.fileExists(atPath: config) else { throw EdgeError("\(config) is missing") }
    }

    /// Reads every byte; throws naming the file that is not what was written.
    func verify() throws {
        for file in manifest.files {
            let url = directory.appendingPathComponent(file.path).standardizedFileURL
            guard url.path.hasPrefix(directory.path + "/") else { throw EdgeError("\(file.path) lies outside") }
            guard let content = try? Data(contentsOf: url, options: .mappedIfSafe), content.count == file.bytes,
                  SHA256.hash(data: content).map({ String(format: "%02x", $0) }).joined() == file.sha256
            else { throw EdgeError("\(file.path) is not the file that was written") }
        }
    }
}
