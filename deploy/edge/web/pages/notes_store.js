// Notes and their embeddings in this browser (IndexedDB). A note: {id, text, passages: [{text, vector}], model}.

const STORE = "notes";

function opened() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open("everlearn-notes", 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id", autoIncrement: true });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

async function run(mode, work) {
  const database = await opened();
  try {
    return await new Promise((resolve, reject) => {
      const transaction = database.transaction(STORE, mode);
      const request = work(transaction.objectStore(STORE));
      transaction.oncomplete = () => resolve(request.result);
      transaction.onabort = transaction.onerror = () => reject(transaction.error);
    });
  } finally {
    database.close();
  }
}

export const allNotes = () => run("readonly", (store) => store.getAll());
export const putNote = (note) => run("readwrite", (store) => store.put(note));
export const removeNote = (id) => run("readwrite", (store) => store.delete(id));
