"use strict";

// Each comparison of images has a divider that follows the pointer and the arrow keys, and a choice of its sides.
for (const compare of document.querySelectorAll(".compare")) {
  const stage = compare.querySelector(".stage");
  const range = stage.querySelector("input");
  const layers = [...stage.querySelectorAll(".layer")];
  const buttons = [...compare.querySelectorAll("button")];
  const name = (place) => layers.find((layer) => layer.classList.contains(place)).querySelector(".tag").textContent;

  const show = () => {
    stage.style.setProperty("--at", range.value + "%");
    range.setAttribute("aria-valuetext", `${range.value} % ${name("left")}, ${100 - range.value} % ${name("right")}`);
  };

  const follow = (event) => {
    const box = stage.getBoundingClientRect();
    const position = (event.clientX - box.left) / box.width;
    range.value = Math.round(100 * Math.min(1, Math.max(0, position)));
    show();
  };

  stage.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    stage.setPointerCapture(event.pointerId);
    event.preventDefault(); // do not drag the image or select text
    range.focus({ preventScroll: true, focusVisible: false });
    follow(event);
  });
  stage.addEventListener("pointermove", (event) => {
    if (stage.hasPointerCapture(event.pointerId)) follow(event);
  });
  range.addEventListener("input", show);

  for (const button of buttons) {
    button.addEventListener("click", () => {
      layers.forEach((layer, place) => {
        layer.classList.toggle("left", String(place) === button.dataset.left);
        layer.classList.toggle("right", String(place) === button.dataset.right);
        layer.classList.toggle("off", ![button.dataset.left, button.dataset.right].includes(String(place)));
      });
      buttons.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
      show();
    });
  }
  show();
}

// All sections are open while the page is printed.
let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open], .long)")];
  closed.forEach((part) => (part.open = true));
});
addEventListener("afterprint", () => closed.forEach((part) => (part.open = false)));

// A link to an element in a closed section opens the section.
const reveal = () => {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  for (let part = target; part; part = part.parentElement) if (part.tagName === "DETAILS") part.open = true;
};
addEventListener("hashchange", reveal);
reveal();
