/* Draws a scan: the slice, the layers over it, and the text of the controls. At first, slices are shown as images from the server. When the
   user scrolls or needs more, all slices are loaded, and if WebGL 2 is available, NiiVue draws them; it also draws the other planes.
   viewer.js handles input in the same way for both. */
import { fetchVolume, planesOf } from "./viewer_volume.js";

const PREFETCHED = 2; // Images on each side that are prefetched.
const MOST_VOXELS = 2 ** 27; // 512 slices of 512 x 512, 256 MB: the maximum that a browser is expected to load.
export const LAYERS = ["heat", "outline"];

export class Drawing {
  /* `viewer` is the element of scans/_viewer.html. The state is { plane, index, level, width }: a slice of a plane, counted from 0, and a
     window. An image that is not a CT has only layers: no slices and no window. */
  constructor(viewer) {
    const part = (name) => viewer.querySelector(`[data-part=${name}]`);
    this.viewer = viewer;
    this.part = part;
    this.stage = part("stage");
    this.picture = part("picture");
    this.image = part("image");
    this.slider = part("slider");
    this.presets = [...viewer.querySelectorAll("[data-level]")];
    const facts = viewer.dataset.series ? JSON.parse(viewer.dataset.series) : null;
    this.hasVoxels = facts !== null;
    this.isHu = facts?.isHu ?? false;
    this.probabilities = facts?.probabilities ?? [];
    this.planes = facts && planesOf(facts, facts.mm);
    this.slices = facts?.slices ?? 1;
    this.voxels = facts ? facts.columns * facts.rows * facts.slices : Infinity;
    this.shown = { plane: "axial", index: 0 };
    this.volume = null; // The return value of fetchVolume, once it was requested.
    this.niivue = null; // A function that draws a state, once NiiVue has the series.
    this.loading = null;
    this.pointed = null; // The position whose value is shown, in fractions of the image.
    this.zoom = null; // viewer_zoom.js, set by viewer.js.
    this.onOnlyPictures = () => {}; // Called if the other planes cannot be drawn.
    this.awaited = new Set(); // Layers that were requested before they were ready: they are switched on when they are.
    this.isFetching = false;
    this.isStale = false; // Something else was requested while an image was being fetched.
    this.slider?.style.setProperty("--slice", `${100 / this.slices}%`); // The thumb is as wide as a slice's bar.
  }

  plane() {
    return this.planes[this.shown.plane];
  }

  /* A key that identifies this slice. */
  placeName() {
    return `${this.shown.plane} ${this.shown.index}`;
  }

  /* Show a message in place of an image or a layer that could not be loaded. */
  watchPictures() {
    const tell = (failed) => {
      this.image.hidden = failed;
      this.part("failed").hidden = !failed;
      this.part("failed-text").textContent = this.slider
        ? `Slice ${this.slider.value} could not be loaded.` : "The image could not be loaded.";
    };
    this.image.addEventListener("error", () => tell(true));
    this.image.addEventListener("load", () => tell(false));
    if (this.image.complete && !this.image.naturalWidth) {
      tell(true); // It had failed before this file was loaded.
    }
    this.tellFailed = tell;
    for (const name of LAYERS) {
      const layer = this.part(name);
      const text = this.part(`no-${name}`);
      layer?.addEventListener("error", () => {
        layer.hidden = true;
        Object.assign(text, { textContent: `The ${layer.dataset.called} could not be loaded`, hidden: !this.part(`${name}-on`).checked });
      });
    }
  }

  reload() {
    this.part("failed-text").textContent = "Loading…";
    if (this.hasVoxels && this.slices > 1) {
      this.drawPicture();
    } else {
      this.image.src = this.image.getAttribute("src");
    }
  }

  start(shown) {
    this.shown = shown;
    this.fitStage();
    this.drawLayers();
    this.drawControls();
  }

  draw(shown) {
    const wasPlane = this.shown.plane;
    this.shown = shown;
    if (wasPlane !== shown.plane) {
      this.fitStage();
    }
    if (this.niivue) {
      this.niivue(shown);
    } else if (shown.plane === "axial") {
      this.drawPicture();
    }
    this.drawLayers();
    this.drawControls();
    this.load();
  }

  /* Give the stage the aspect ratio of the plane's image. */
  fitStage() {
    const { across, down, mm } = this.plane();
    this.stage.style.setProperty("--aspect", (across * mm[0]) / (down * mm[1]));
    this.stage.classList.add("fitted");
    this.image.classList.toggle("gone", this.shown.plane !== "axial");
  }

  // One image is fetched at a time; slices that were scrolled past meanwhile are skipped.
  async drawPicture() {
    if (this.isFetching) {
      this.isStale = true;
      return;
    }
    this.isFetching = true;
    do {
      this.isStale = false;
      const next = new Image();
      next.src = this.pictureUrl(this.shown.index);
      // If an image cannot be loaded, another one must not stay visible under its number.
      await next.decode().then(
        () => { this.image.src = next.src; this.tellFailed(false); },
        () => this.tellFailed(true),
      );
    } while (this.isStale);
    this.isFetching = false;
    for (let step = 1; step <= PREFETCHED && !this.niivue; step += 1) {
      for (const index of [this.shown.index - step, this.shown.index + step]) {
        if (index >= 0 && index < this.slices) {
          new Image().src = this.pictureUrl(index);
        }
      }
    }
  }

  pictureUrl(index) {
    return `${this.viewer.dataset.scan}/slices/${index}.png?level=${this.shown.level}&width=${this.shown.width}`;
  }

  /* Draw the layers of the current slice that are ready; their checkboxes control whether they are visible (hemoscan.css). */
  drawLayers() {
    const drawn = document.getElementById("layers").dataset;
    for (const name of LAYERS) {
      const layer = this.part(name);
      const toggle = this.part(`${name}-on`);
      if (!layer) {
        continue;
      }
      const slices = JSON.parse(drawn[name]);
      const isHere = this.shown.plane === "axial" && slices.includes(this.shown.index);
      toggle.disabled = slices.length === 0;
      if (slices.length && this.awaited.delete(name)) {
        toggle.checked = true;
      }
      layer.hidden = !isHere;
      this.part(`no-${name}`).textContent = this.part(`no-${name}`).dataset.text;
      this.part(`no-${name}`).hidden = isHere || !toggle.checked || this.shown.plane !== "axial";
      if (isHere) {
        const file = { heat: "heatmap.png", outline: "outline.png" }[name];
        layer.src = `${this.viewer.dataset.scan}${this.slices > 1 ? `/slices/${this.shown.index}` : ""}/${file}`;
      }
    }
  }

  drawControls() {
    const { plane, index, level, width } = this.shown;
    const isAxial = plane === "axial";
    const { count } = this.plane();
    if (this.slider) {
      const probability = isAxial && this.probabilities.length ? `, ${Math.round(100 * this.probabilities[index])}%` : "";
      this.slider.max = count;
      this.slider.value = index + 1;
      this.slider.style.setProperty("--slice", `${100 / count}%`);
      this.part("place").textContent = `${index + 1} of ${count}${isAxial ? probability : `, ${plane}`}`;
      this.slider.setAttribute("aria-valuetext", this.part("place").textContent);
      this.part("strip").classList.toggle("gone", !isAxial);
      this.image.alt = `Slice ${index + 1} of ${count}`;
    }
    this.part("window").textContent = this.isHu ? `Level ${level}, width ${width} HU` : "";
    for (const preset of this.presets) {
      preset.setAttribute("aria-pressed", Number(preset.dataset.level) === level && Number(preset.dataset.width) === width);
    }
    for (const button of this.viewer.querySelectorAll("[data-plane]")) {
      button.setAttribute("aria-pressed", button.dataset.plane === plane);
    }
    for (const side of this.viewer.querySelectorAll(".side")) {
      side.hidden = plane === "sagittal";
    }
    for (const link of this.viewer.querySelectorAll("[data-slice]")) {
      link.toggleAttribute("aria-current", isAxial && Number(link.dataset.slice) === index);
    }
    this.tellValue(this.pointed);
  }

  /* Show the value at this position in the image, in fractions of its width and height. */
  tellValue(point) {
    this.pointed = point;
    const value = this.part("value");
    if (!value || !this.isHu) {
      return;
    }
    if (!point || point.x < 0 || point.x >= 1 || point.y < 0 || point.y >= 1) {
      value.textContent = "";
    } else if (this.volume) {
      const plane = this.plane();
      const voxel = plane.voxel(Math.floor(point.x * plane.across), Math.floor(point.y * plane.down), this.shown.index);
      value.textContent = `${this.volume.valueAt(...voxel)} HU`;
    } else if (this.loading) {
      value.textContent = "Loading…";
    }
  }

  /* Convert a position in the window to a position in the image, in fractions of its width and height. */
  toPicture(clientX, clientY) {
    const box = this.picture.getBoundingClientRect();
    return { x: (clientX - box.x) / box.width, y: (clientY - box.y) / box.height };
  }

  /* Convert a position in the image to a position on the stage, in pixels. */
  toStage({ x, y }) {
    return {
      x: x * this.stage.clientWidth * this.zoom.scale + this.zoom.x,
      y: y * this.stage.clientHeight * this.zoom.scale + this.zoom.y,
    };
  }

  /* Load all slices, only once: then values can be shown, and a series is drawn by NiiVue. If that fails, images from the server are still used. */
  load() {
    if (this.hasVoxels && this.voxels <= MOST_VOXELS) {
      this.loading ??= this.loadOnce();
    }
    return this.loading;
  }

  async loadOnce() {
    this.viewer.setAttribute("aria-busy", "true");
    try {
      this.volume = await fetchVolume(`${this.viewer.dataset.scan}/volume`);
      this.tellValue(this.pointed);
      if (this.slices > 1) {
        this.niivue = await loadNiivue(this.viewer, this.picture, this.volume.buffer, this.shown);
        this.niivue(this.shown);
        this.tellFailed(false);
      }
    } catch {
      for (const button of this.viewer.querySelectorAll("[data-plane]:not([data-plane=axial])")) {
        Object.assign(button, { disabled: true, title: "This browser cannot show the other planes." });
      }
      this.onOnlyPictures();
    }
    this.viewer.removeAttribute("aria-busy");
  }
}

/* Return a function that draws the current state with NiiVue, which does nothing else: `interactive` is off. */
async function loadNiivue(viewer, picture, buffer, { level, width }) {
  if (!document.createElement("canvas").getContext("webgl2")) {
    throw new Error("There is no WebGL 2.");
  }
  await new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = viewer.dataset.niivue;
    script.onload = resolve;
    script.onerror = reject;
    document.head.append(script);
  });
  const { Niivue, SLICE_TYPE } = window.niivue;
  const types = { axial: SLICE_TYPE.AXIAL, coronal: SLICE_TYPE.CORONAL, sagittal: SLICE_TYPE.SAGITTAL };
  const place = document.createElement("div");
  const canvas = document.createElement("canvas");
  place.className = "gpu";
  place.hidden = true;
  place.append(canvas);
  picture.querySelector("[data-part=image]").after(place);
  const niivue = new Niivue({
    interactive: false, dragAndDropEnabled: false, sliceType: SLICE_TYPE.AXIAL, isRadiologicalConvention: true,
    crosshairWidth: 0, isOrientationTextVisible: false, isColorbar: false, loadingText: "", logLevel: "error",
  });
  // It draws no text here, but still fetches its font and a texture for surfaces from data: URLs, which our content security policy forbids.
  niivue.loadFontTexture = niivue.loadMatCapTexture = async () => null;
  await niivue.attachToCanvas(canvas, false);
  await niivue.addVolumeFromUrl({ url: "series.nii", name: "series.nii", buffer, cal_min: level - width / 2, cal_max: level + width / 2 });
  const [volume] = niivue.volumes;
  place.hidden = false;
  let plane = "axial";
  return (shown) => {
    const low = shown.level - shown.width / 2;
    const high = shown.level + shown.width / 2;
    if (volume.cal_min !== low || volume.cal_max !== high) {
      Object.assign(volume, { cal_min: low, cal_max: high });
      niivue.updateGLVolume();
    }
    const at = { axial: [0, 0, shown.index], coronal: [0, shown.index, 0], sagittal: [shown.index, 0, 0] }[shown.plane];
    niivue.scene.crosshairPos = niivue.vox2frac(at);
    if (plane !== shown.plane) {
      plane = shown.plane;
      niivue.setSliceType(types[plane]);
      niivue.resizeListener(); // The aspect ratio of the stage has changed.
    }
    niivue.drawScene();
  };
}
