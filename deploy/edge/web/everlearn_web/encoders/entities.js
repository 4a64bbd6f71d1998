// From the labels of tokens to the entities of a text, as Hugging Face's token classification answers.

/**
 * Those of `text` that are none of `ignored`. pieces: of each token where it is, null of a mark; rows: its probabilities.
 * simple: neighbouring tokens of one kind are one entity, which a B- begins anew; else each token is one.
 */
export function entities(text, pieces, rows, labels, { simple, ignored }) {
  const found = [];
  for (const [index, piece] of pieces.entries()) {
    if (!piece || piece.start === piece.end) continue;
    const score = Math.max(...rows[index]);
    const { start, end } = piece;
    found.push({ entity: labels[rows[index].indexOf(score)], score, index, word: text.slice(start, end), start, end });
  }
  if (!simple) return found.filter(({ entity }) => !ignored.has(entity));
  return joined(text, found).filter(({ entity_group }) => !ignored.has(entity_group));
}

/** Neighbours of one kind, whose score is their mean. */
function joined(text, tokens) {
  const groups = [];
  let before = null;
  for (const token of tokens) {
    const kind = kindOf(token.entity);
    if (token.entity.startsWith("B-") || kind !== before) groups.push([]);
    groups.at(-1).push(token);
    before = kind;
  }
  return groups.map((group) => {
    const [start, end] = [group[0].start, group.at(-1).end];
    const score = group.reduce((sum, one) => sum + one.score, 0) / group.length;
    return { entity_group: kindOf(group[0].entity), score, word: text.slice(start, end), start, end };
  });
}

/** "PER" of "B-PER" and "I-PER". */
const kindOf = (label) => label.replace(/^[BI]-/, "");
