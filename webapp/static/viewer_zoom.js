/* Zooms and pans the image of a scan: by buttons and keys, with Ctrl and the wheel, by pinching, by dragging. */

const MOST = 12;
const STILL_PX = 5; // A pointer movement shorter than this is a click.
export const STEP = 1.4;

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

export class Zoom {
  /* `stage` keeps its size; `picture` inside it is enlarged. `onChange()` is called after each change. */
  constructor(stage, picture, onChange) {
    Object.assign(this, { stage, picture, onChange, scale: 1, x: 0, y: 0, wasDragged: false });
    this.pointers = new Map();
    stage.addEventListener("pointerdown", (event) => this.press(event));
    stage.addEventListener("pointermove", (event) => this.drag(event));
    for (const end of ["pointerup", "pointercancel"]) {
      stage.addEventListener(end, (event) => this.pointers.delete(event.pointerId));
    }
    stage.addEventListener("wheel", (event) => {
      if (event.ctrlKey) {
        event.preventDefault();
        this.by(Math.exp(-clamp(event.deltaY, -50, 50) / 100), event.clientX, event.clientY);
      }
    }, { passive: false });
    stage.addEventListener("dragstart", (event) => event.preventDefault());
  }

  /* Zoom by a factor around a position in the window, by default the middle. */
  by(factor, clientX, clientY) {
    const box = this.stage.getBoundingClientRect();
    const x = (clientX ?? box.x + box.width / 2) - box.x;
    const y = (clientY ?? box.y + box.height / 2) - box.y;
    const scale = clamp(this.scale * factor, 1, MOST);
    const change = scale / this.scale;
    this.show(scale, x - (x - this.x) * change, y - (y - this.y) * change);
  }

  move(x, y) {
    this.show(this.scale, this.x + x, this.y + y);
  }

  fit() {
    this.show(1, 0, 0);
  }

  show(scale, x, y) {
    this.scale = scale;
    this.x = clamp(x, this.stage.clientWidth * (1 - scale), 0);
    this.y = clamp(y, this.stage.clientHeight * (1 - scale), 0);
    this.picture.style.transform = scale === 1 ? "" : `translate(${this.x}px, ${this.y}px) scale(${scale})`;
    this.stage.classList.toggle("enlarged", scale > 1);
    this.onChange();
  }

  press(event) {
    if (event.button !== 0 || event.shiftKey) {
      return;
    }
    if (event.isPrimary) {
      this.pointers.clear();
      this.wasDragged = false;
    }
    this.pointers.set(event.pointerId, { x: event.clientX, y: event.clientY, startX: event.clientX, startY: event.clientY });
    if (this.pointers.size > 1) {
      this.wasDragged = true;
    }
  }

  drag(event) {
    const last = this.pointers.get(event.pointerId);
    if (!last) {
      return;
    }
    this.wasDragged ||= Math.hypot(event.clientX - last.startX, event.clientY - last.startY) > STILL_PX;
    if (!this.wasDragged) {
      return;
    }
    const others = [...this.pointers.values()].filter((pointer) => pointer !== last);
    if (others.length) {
      const [{ x, y }] = others;
      const factor = Math.hypot(event.clientX - x, event.clientY - y) / Math.max(Math.hypot(last.x - x, last.y - y), 1);
      this.by(factor, (event.clientX + x) / 2, (event.clientY + y) / 2);
    } else if (this.scale > 1) {
      this.stage.setPointerCapture(event.pointerId);
      this.move(event.clientX - last.x, event.clientY - last.y);
    }
    Object.assign(last, { x: event.clientX, y: event.clientY });
  }
}
