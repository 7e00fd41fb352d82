/** Images that a latent is strongest on, with its map over each. */
import { useEffect, useRef, useState } from "preact/hooks";
import { fileName, type LatentEntry, the, thumbnails } from "./data";
import { useLater } from "./later";
import { held, short } from "./text";

/** A colour between two of a palette's; that of all pictures that the package makes comes with the data. */
export function shade(palette: number[][], share: number): number[] {
  const at = Math.max(0, Math.min(1, share)) * (palette.length - 1);
  const low = Math.min(palette.length - 2, Math.floor(at));
  return palette[low].map((value, i) => Math.round(value + (at - low) * (palette[low + 1][i] - value)));
}

/** How much of the image a value hides: little where it is small, and never all. */
const opacity = (share: number) => 60 + 145 * share;

function Map_({ maps, at, most, threshold }: {
  maps: NonNullable<LatentEntry["maps"]>; at: number; most: number; threshold: number;
}) {
  const canvas = useRef<HTMLCanvasElement>(null);
  useEffect(() => {
    const { height, width, values } = maps;
    const picture = new ImageData(width, height);
    const { palette } = the().about;
    for (let i = 0; i < height * width; i++) {
      const share = most > 0 ? Math.max(0, values[at * height * width + i]) / most : 0;
      picture.data.set([...shade(palette, share), share > 0 && share >= threshold ? opacity(share) : 0], 4 * i);
    }
    canvas.current!.getContext("2d")!.putImageData(picture, 0, 0);
  }, [maps, at, most, threshold]);
  return <canvas ref={canvas} width={maps.width} height={maps.height} aria-hidden="true" />;
}

/** The frame has the form of the crop, no side longer than its column is wide, and the image is so large that the crop fills it. */
function cropped(maps: NonNullable<LatentEntry["maps"]>, at: number) {
  const [left, top, width, height, form] = maps.crops.subarray(5 * at, 5 * at + 5);
  const percent = (share: number) => `${100 * share}%`;
  return {
    frame: { aspectRatio: form, width: percent(Math.min(1, form)) },
    image: { left: percent(-left / width), top: percent(-top / height), width: percent(1 / width), height: percent(1 / height) },
  };
}

export function Gallery({ latent, entry, limit = 12 }: { latent: number; entry: LatentEntry; limit?: number }) {
  const [threshold, setThreshold] = useState(0.15);
  const [shown, setShown] = useState(true);
  const [crops, setCrops] = useState(false);
  const { about } = the();
  const { maps } = entry;
  let most = 0;
  for (const value of maps?.values ?? []) most = Math.max(most, value);
  const images = Array.from(entry.images.subarray(0, limit));
  const { value: sources } = useLater(() => thumbnails(images), [images.join()]);
  return (
    <div class="gallery">
      {maps ? (
        <div class="controls">
          <label class="check">
            <input type="checkbox" checked={shown} onInput={(event) => setShown(event.currentTarget.checked)} /> Map
          </label>
          <label class="check">
            <input type="checkbox" checked={crops} onInput={(event) => setCrops(event.currentTarget.checked)} /> Crop
          </label>
          <label class="slide">
            <span>from {Math.round(100 * threshold)} % of the largest value</span>
            <input type="range" min="0" max="100" value={100 * threshold} aria-label="Threshold of the map, in percent"
              onInput={(event) => setThreshold(Number(event.currentTarget.value) / 100)} />
          </label>
          <div class="scale" aria-hidden="true"><span>0</span><i style={{ background: `linear-gradient(90deg, ${about.palette.map((colour) => `rgb(${colour.map(Number)})`).join(", ")})` }} /><span>{short(most * maps.unit)}</span></div>
        </div>
      ) : null}
      <ol>
        {images.map((image, at) => {
          const source = sources?.[at];
          const file = fileName(image);
          const crop = maps && crops && source ? cropped(maps, at) : null;
          return (
            <li key={image}>
              <figure>
                <div class={source ? "frame" : "frame empty"} style={crop?.frame}>
                  <div class={crop ? "part" : ""} style={crop?.image}>
                    {source ? <img src={held(source)} alt={file} class={shown && maps ? "grey" : ""} /> : <span class="blank">{sources ? "no picture" : ""}</span>}
                    {source && maps && shown ? <Map_ maps={maps} at={at} most={most} threshold={threshold} /> : null}
                  </div>
                </div>
                <figcaption><b>{short(entry.codes[at])}</b><span title={file}>{file}</span></figcaption>
              </figure>
            </li>
          );
        })}
      </ol>
      {maps ? (
        <p class="note">
          Grad-FAM of latent {latent}: where the image raises it, all pictures on one scale. What lowers it is not drawn.
        </p>
      ) : about.maps_missing ? <p class="note">{about.maps_missing}</p> : null}
    </div>
  );
}
