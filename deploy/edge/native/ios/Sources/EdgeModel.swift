import Foundation

/// The model of a verified folder. One thread uses it at a time.
final class EdgeModel {
    private let folder: EdgeFolder
    private let model: OGAModel
    private let tokenizer: OGATokenizer

    init(_ folder: EdgeFolder) throws {
        self.folder = folder
        model = try OGAModel(path: folder.directory.path)
        tokenizer = try OGATokenizer(model: model)
    }

    /// Throws where this phone's first choice is one that the probes, within their bound, rule out.
    func checkProbes() throws {
        for probe in folder.manifest.probes {
            let least = probe.top_logits[0] - 2 * folder.manifest.bound
            let possible = zip(probe.top_ids, probe.top_logits).filter { $0.1 >= least }.map { $0.0 }
            let generator = try start(length: probe.token_ids.count + 1)
            try generator.appendTokens(probe.token_ids.map { NSNumber(value: $0) })
            try generator.generateNextToken()
            guard possible.count == probe.top_ids.count || possible.contains(try last(of: generator)) else {
                throw EdgeError("this phone computes other numbers than the folder's probes: it is not used")
            }
        }
    }

    /// Continues `prompt` greedily by at most `tokens`; `onText` gets what is certain so far.
    func complete(_ prompt: String, tokens: Int, onText: (String) -> Void) throws {
        let encoded = try tokenizer.encode(prompt)
        let length = Int(encoded.sequenceCount(at: 0, error: nil))
        let context = folder.manifest.graph.context
        guard length < context else { throw EdgeError("the prompt has \(length) tokens, and \(context) are kept") }
        let generator = try start(length: min(length + tokens, context))
        try generator.appendTokenSequences(encoded)
        let stream = try OGATokenizerStream(tokenizer: tokenizer)
        while try !generator.isDone() {
            try generator.generateNextToken()
            onText(try stream.decode(try last(of: generator)))
        }
    }

    private func start(length: Int) throws -> OGAGenerator {
        let parameters = try OGAGeneratorParams(model: model)
        try parameters.setSearchOption("max_length", doubleValue: Double(length))
        try parameters.setSearchOption("do_sample", boolValue: false)
        return try OGAGenerator(model: model, params: parameters)
    }

    private func last(of generator: OGAGenerator) throws -> Int32 {
        let count = Int(generator.sequenceCount(at: 0, error: nil))
        return try generator.sequenceData(at: 0)[count - 1]
    }
}
