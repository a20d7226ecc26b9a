/* The voxels of a series, as stored by ml/scans/volume.py, and their positions in the images of its three planes. */

const HEADER = { sizes: 42, offset: 108, slope: 112 }; // Byte offsets in a NIfTI-1 header.

/* Fetch the series of a scan: { buffer: an uncompressed NIfTI-1 file, valueAt(x, y, z): HU, or 0..1 for images without HU }. */
export async function fetchVolume(address) {
  const answer = await fetch(address);
  if (!answer.ok) {
    throw new Error(`The series was answered with ${answer.status}.`);
  }
  const buffer = await new Response(answer.body.pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
  const header = new DataView(buffer);
  const [columns, rows, slices] = [0, 2, 4].map((at) => header.getInt16(HEADER.sizes + at, true));
  const voxels = new Int16Array(buffer, header.getFloat32(HEADER.offset, true), columns * rows * slices);
  const slope = header.getFloat32(HEADER.slope, true);
  return { buffer, valueAt: (x, y, z) => voxels[(z * rows + y) * columns + x] * slope };
}

/* The planes of a series of `size` { columns, rows, slices } with voxels of `mm` [x, y, z]: the number of slices, the number of
   voxels across and down an image and their size, and the voxel [x, y, z] at a position in it. Voxels run to the patient's right, front and
   head; images show the patient's right on the left, and the front at the top (axial) or on the right (sagittal). */
export function planesOf({ columns, rows, slices }, mm) {
  return {
    axial: { count: slices, across: columns, down: rows, mm: [mm[0], mm[1]], voxel: (column, row, index) => [columns - 1 - column, rows - 1 - row, index] },
    coronal: { count: rows, across: columns, down: slices, mm: [mm[0], mm[2]], voxel: (column, row, index) => [columns - 1 - column, index, slices - 1 - row] },
    sagittal: { count: columns, across: rows, down: slices, mm: [mm[1], mm[2]], voxel: (column, row, index) => [index, column, slices - 1 - row] },
  };
}
