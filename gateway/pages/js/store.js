// What this tab remembers over a reload. Where the browser gives no storage, the page's own memory has to do.

const memory = new Map();

function storage() {
  try {
    return window.sessionStorage;
  } catch {
    return null;
  }
}

/** The text kept under this name, or null. */
export function read(name) {
  return storage()?.getItem(name) ?? memory.get(name) ?? null;
}

/** Keeps a text; null forgets it. */
export function write(name, text) {
  if (text === null) {
    memory.delete(name);
    storage()?.removeItem(name);
    return;
  }
  memory.set(name, text);
  try {
    storage()?.setItem(name, text);
  } catch {
    // Full: the copy in memory lasts as long as the page.
  }
}
