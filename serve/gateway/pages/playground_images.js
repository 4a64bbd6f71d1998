// The image that a model of images and texts is asked about: chosen, dropped or pasted, and made small enough to send.

const KINDS = ["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp"];
/** Pixels of the shorter side: models see fewer. */
const SIDE = 512;
const SMALL_BYTES = 1024 ** 2;

export class ImagePicker {
  /** `changed` is called when there is another image. */
  constructor(changed) {
    const $ = (id) => document.getElementById(id);
    this.field = $("image-field");
    this.file = $("image-file");
    this.preview = $("image-shown");
    this.label = $("image-label");
    this.fault = $("image-fault");
    this.changed = changed;
    /** As a data URL, or null. */
    this.url = null;
    this.file.addEventListener("change", () => this.take(this.file.files[0]));
    document.addEventListener("paste", (event) => this.takeFrom(event, event.clipboardData));
    document.addEventListener("drop", (event) => this.takeFrom(event, event.dataTransfer));
    document.addEventListener("dragover", (event) => {
      if (!this.field.hidden) event.preventDefault();
    });
  }

  takeFrom(event, transfer) {
    const [file] = transfer?.files ?? [];
    if (!file || this.field.hidden) return;
    event.preventDefault();
    this.take(file);
  }

  async take(file) {
    if (!file) return;
    this.say("");
    try {
      this.url = await dataUrl(file);
      this.preview.src = this.url;
      this.preview.hidden = false;
      this.label.textContent = file.name || "Image";
    } catch (error) {
      this.say(error.message);
    }
    this.file.value = "";
    this.changed();
  }

  say(fault) {
    this.fault.textContent = fault;
    this.fault.hidden = !fault;
  }
}

/** The file as it is where it is small, else drawn smaller. Throws an Error that says what is wrong. */
async function dataUrl(file) {
  if (!KINDS.includes(file.type)) throw new Error("PNG, JPEG, WebP, GIF and BMP can be read.");
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error("This image is broken.");
  }
  const scale = Math.min(1, SIDE / Math.min(bitmap.width, bitmap.height));
  if (scale === 1 && file.size <= SMALL_BYTES) return asItIs(file);
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/png");
}

function asItIs(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error("This file cannot be read."));
    reader.readAsDataURL(file);
  });
}
