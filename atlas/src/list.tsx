/** A table of any length of which only the rows in sight are in the document. */
import { signal } from "@preact/signals";
import {
  elementScroll, observeElementOffset, observeElementRect, Virtualizer,
} from "@tanstack/virtual-core";
import type { ComponentChildren } from "preact";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";

export type Column = {
  name: string; title: string; numeric?: boolean; wide?: boolean;
  /** What rows are ordered by. */
  key: (row: number) => number | string;
  cell: (row: number) => ComponentChildren;
};
const HEIGHT = 44;

export function ordered(rows: number[], column: Column, down: boolean): number[] {
  const keys = new Map(rows.map((row) => [row, column.key(row)]));
  const sign = down ? -1 : 1;
  return [...rows].sort((a, b) => {
    const [left, right] = [keys.get(a)!, keys.get(b)!];
    if (left === right) return a - b;
    return left < right ? -sign : sign;
  });
}

const sortings = signal<Record<string, { column: string; down: boolean }>>({});

export function List({ label, rows, columns, href, sorted }: {
  label: string; rows: number[]; columns: Column[]; href: (row: number) => string;
  sorted: { column: string; down: boolean };
}) {
  const sorting = sortings.value[label] ?? sorted;
  const column = columns.find((each) => each.name === sorting.column) ?? columns[0];
  const shown = useMemo(() => ordered(rows, column, sorting.down), [rows, column.name, sorting.down]);
  const box = useRef<HTMLDivElement>(null);
  const [, again] = useState(0);
  const options = {
    count: shown.length, estimateSize: () => HEIGHT, overscan: 8,
    getScrollElement: () => box.current, scrollToFn: elementScroll, observeElementRect,
    observeElementOffset, onChange: () => again((n) => n + 1),
  };
  const [virtual] = useState(() => new Virtualizer<HTMLDivElement, HTMLDivElement>(options));
  virtual.setOptions(options);
  useEffect(() => virtual._didMount(), []);
  useEffect(() => {
    virtual._willUpdate();
    again((n) => n + 1);
  }, [shown.length]);
  const sort = (name: string) => {
    const down = sorting.column === name ? !sorting.down : columns.find((each) => each.name === name)!.numeric === true;
    sortings.value = { ...sortings.value, [label]: { column: name, down } };
    box.current?.scrollTo(0, 0);
  };
  const template = columns.map((each) => (each.wide ? "minmax(9rem, 2fr)" : "minmax(5rem, 1fr)")).join(" ");
  const key = (event: KeyboardEvent) => {
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10 }[event.key];
    const place = (document.activeElement as HTMLElement | null)?.dataset.place;
    if (step === undefined || place === undefined) return;
    event.preventDefault();
    const next = Math.max(0, Math.min(shown.length - 1, Number(place) + step));
    virtual.scrollToIndex(next);
    requestAnimationFrame(() => box.current?.querySelector<HTMLElement>(`[data-place="${next}"]`)?.focus());
  };
  return (
    <div class="list" role="table" aria-label={label} aria-rowcount={shown.length + 1}>
      <div role="rowgroup">
        <div class="row head" role="row" style={{ gridTemplateColumns: template }}>
          {columns.map((each) => (
            <div key={each.name} role="columnheader" class={each.numeric ? "number" : ""}
              aria-sort={each !== column ? "none" : sorting.down ? "descending" : "ascending"}>
              <button type="button" onClick={() => sort(each.name)}>
                {each.title}
                <span aria-hidden="true">{each !== column ? "" : sorting.down ? " ↓" : " ↑"}</span>
              </button>
            </div>
          ))}
        </div>
      </div>
      <div class="body" ref={box} onKeyDown={key} role="rowgroup" tabIndex={shown.length ? -1 : 0}>
        <div role="presentation" class="length" style={{ height: `${virtual.getTotalSize()}px` }}>
          {virtual.getVirtualItems().map((item) => {
            const row = shown[item.index];
            return row === undefined ? null : (
              <div key={row} class="row" role="row" aria-rowindex={item.index + 2}
                style={{ gridTemplateColumns: template, transform: `translateY(${item.start}px)` }}>
                {columns.map((each, at) => (
                  <div key={each.name} role="cell" class={each.numeric ? "number" : ""}>
                    {at ? each.cell(row) : <a href={href(row)} data-place={item.index}>{each.cell(row)}</a>}
                  </div>
                ))}
              </div>
            );
          })}
        </div>
      </div>
    </div>
  );
}
