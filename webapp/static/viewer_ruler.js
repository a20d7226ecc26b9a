/* The ruler of a scan's image: measures the distance of two points in mm. Points are set by clicks and taps, or by arrow keys and Enter. */

export class Ruler {
  /* `drawing` has the current state; `part` finds the parts of the viewer. */
  constructor(drawing, part) {
    this.drawing = drawing;
    this.button = part("ruler-on");
    this.lines = part("ruler");
    this.label = part("length");
    this.isOn = false;
    this.points = []; // Up to two, in fractions of the image's width and height.
    this.where = ""; // The slice that they belong to.
    this.cursor = null; // The position of the keyboard cursor.
  }

  toggle() {
    this.isOn = !this.isOn;
    this.button.setAttribute("aria-pressed", this.isOn);
    this.drawing.stage.classList.toggle("measuring", this.isOn);
    this.points = [];
    this.cursor = null;
    if (this.isOn) {
      this.drawing.stage.focus({ preventScroll: true });
    }
    this.draw();
  }

  add(point) {
    const where = this.drawing.placeName();
    this.points = this.points.length === 1 && this.where === where ? [...this.points, point] : [point];
    this.where = where;
    this.draw();
  }

  /* Move the keyboard cursor by voxels; it starts in the middle. */
  move(across, down) {
    const plane = this.drawing.plane();
    const from = this.cursor ?? { x: 0.5, y: 0.5 };
    this.cursor = {
      x: Math.min(Math.max(from.x + across / plane.across, 0), 1),
      y: Math.min(Math.max(from.y + down / plane.down, 0), 1),
    };
    this.drawing.tellValue(this.cursor);
    this.draw();
  }

  addCursor() {
    this.add(this.cursor ?? { x: 0.5, y: 0.5 });
  }

  draw() {
    const shown = this.isOn && this.where === this.drawing.placeName() ? this.points : [];
    const places = shown.map((point) => this.drawing.toStage(point));
    this.lines.replaceChildren(
      ...(places.length === 2 ? [shape("line", { x1: places[0].x, y1: places[0].y, x2: places[1].x, y2: places[1].y })] : []),
      ...places.map(({ x, y }) => shape("circle", { cx: x, cy: y, r: 4 })),
      ...(this.isOn && this.cursor ? [cross(this.drawing.toStage(this.cursor))] : []),
    );
    this.label.hidden = places.length < 2;
    if (places.length === 2) {
      this.label.textContent = `${this.lengthMm(shown).toFixed(1)} mm`;
      this.label.style.left = `${(places[0].x + places[1].x) / 2}px`;
      this.label.style.top = `${Math.min(places[0].y, places[1].y)}px`;
    }
  }

  lengthMm([first, second]) {
    const { across, down, mm } = this.drawing.plane();
    return Math.hypot((second.x - first.x) * across * mm[0], (second.y - first.y) * down * mm[1]);
  }
}

function shape(name, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  Object.entries(attributes).forEach(([attribute, value]) => element.setAttribute(attribute, value));
  return element;
}

function cross({ x, y }) {
  return shape("path", { d: `M${x - 9},${y} H${x + 9} M${x},${y - 9} V${y + 9}` });
}
