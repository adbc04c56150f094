// Making and changing elements. Text is only ever set as text: nothing here can turn a name into markup.

/**
 * Makes an element: el("p", { class: "hint", hidden: true, onclick: act }, "some text", child).
 * Attributes that are functions become listeners; true sets an attribute without value; false and null leave it out.
 */
export function el(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(key.slice(2), value);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value != null) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
}

/** The element of this id, which must be there. */
export function byId(id) {
  const node = document.getElementById(id);
  if (!node) throw new Error(`the page has no #${id}`);
  return node;
}

/** Sets an element's text, only if it is another: what does not change is neither drawn nor read out again. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Shows an element or takes it away. */
export function show(node, shown) {
  if (node.hidden === shown) node.hidden = !shown;
}

/**
 * Keeps a list's children in step with values: one child for each key, made once and changed in place afterwards, so
 * that focus, open details and pressed buttons survive every update. `make(value)` gives { node, update(value) }.
 */
export function keyed(list, keyOf, make) {
  const parts = new Map();
  return (values) => {
    const wanted = new Set(values.map(keyOf));
    for (const [key, part] of parts) {
      if (wanted.has(key)) continue;
      part.node.remove();
      parts.delete(key);
    }
    let before = list.firstElementChild;
    for (const value of values) {
      const key = keyOf(value);
      let part = parts.get(key);
      if (!part) parts.set(key, (part = make(value)));
      part.update(value);
      if (part.node === before) before = before.nextElementSibling;
      else list.insertBefore(part.node, before);
    }
  };
}
