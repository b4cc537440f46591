// One picture at a time, chosen by a slider; without this script all of them stand in a row.
for (const film of document.querySelectorAll(".film")) {
  const frames = [...film.querySelectorAll("figure")];
  if (frames.length < 2) continue;
  const slider = document.createElement("input");
  const show = () => frames.forEach((frame, index) => frame.classList.toggle("shown", index == slider.value));
  Object.assign(slider, { type: "range", min: 0, max: frames.length - 1, value: frames.length - 1 });
  slider.setAttribute("aria-label", "Samples over training, first to last");
  slider.addEventListener("input", show);
  film.classList.add("sliding");
  film.prepend(slider);
  show();
}
