/** uPlot as a component: drawn again when its data, its size or the colour scheme changes. */
import { useEffect, useRef } from "preact/hooks";
import uPlot from "uplot";
import { host } from "./host";

export type Colours = { ink: string; soft: string; grid: string; accent: string; second: string };

export function colours(): Colours {
  const style = getComputedStyle(host.place);
  const named = (name: string) => style.getPropertyValue(name).trim();
  return {
    ink: named("--ink"), soft: named("--soft"), grid: named("--line"), accent: named("--accent"),
    second: named("--second"),
  };
}

export function axis(label: string, more: Partial<uPlot.Axis> = {}): uPlot.Axis {
  const { soft, grid } = colours();
  return {
    label, stroke: soft, font: "12px system-ui, sans-serif", labelFont: "12px system-ui, sans-serif",
    labelSize: 22, labelGap: 2, grid: { stroke: grid, width: 1 }, ticks: { stroke: grid, width: 1 },
    ...more,
  };
}

type Made = Omit<uPlot.Options, "width" | "height">;

/** `made` is called anew for every drawing, so that it takes the present colours. */
export function Chart({ made, data, height = 260, summary, keys, mark }: {
  made: () => Made; data: uPlot.AlignedData; height?: number; summary: string; keys: unknown[];
  /** What the chart's own drawing depends on beside its data. */
  mark?: unknown;
}) {
  const place = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  useEffect(() => {
    const own = place.current!;
    const dark = matchMedia("(prefers-color-scheme: dark)");
    const draw = () => {
      plot.current?.destroy();
      const width = Math.max(200, own.clientWidth);
      plot.current = new uPlot({ ...made(), width, height }, data, own);
    };
    draw();
    let width = own.clientWidth;
    const sized = new ResizeObserver(() => {
      // Taken off the page it has no width: to draw it then would keep the next page waiting.
      if (!own.clientWidth || own.clientWidth === width) return;
      width = own.clientWidth;
      plot.current?.setSize({ width: Math.max(200, width), height });
    });
    sized.observe(own);
    dark.addEventListener("change", draw);
    return () => {
      sized.disconnect();
      dark.removeEventListener("change", draw);
      plot.current?.destroy();
      plot.current = null;
    };
  }, keys);
  useEffect(() => plot.current?.redraw(false, false), [mark]);
  return <div class="chart" ref={place} role="img" aria-label={summary} style={{ minHeight: `${height}px` }} />;
}
