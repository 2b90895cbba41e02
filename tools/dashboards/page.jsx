// One dashboard, drawn by Grafana's components. `window.shown` is {dashboard, answers, from, to, stepMs}; `answers` are
// Prometheus' results by panel id and refId. What Grafana's server and its time series panel would do between the two
// is here: names from `legendFormat`, and the panel's own defaults.
import React from "react";
import { createRoot } from "react-dom/client";
import {
  FieldColorModeId, FieldConfigOptionsRegistry, FieldType, ThemeContext, applyFieldOverrides, createDataFrame,
  createTheme, dateTime, standardFieldConfigEditorRegistry,
} from "@grafana/data";
import { initPluginTranslations } from "@grafana/i18n";
import { GlobalStyles, PanelChrome, TimeSeries } from "@grafana/ui";
import "@fontsource/inter/400.css";
import "@fontsource/inter/500.css";

const { dashboard, answers, from, to, stepMs } = window.shown;
const theme = createTheme({ colors: { mode: "light" } });
const range = { from: dateTime(from), to: dateTime(to), raw: { from: dateTime(from), to: dateTime(to) } };
// Grafana's grid: 24 columns, rows of 30 pixels, 8 between panels.
const [COLUMNS, ROW, GAP] = [24, 30, 8];
const WIDTH = window.innerWidth - 2 * GAP;
const CUSTOM = { drawStyle: "line", lineInterpolation: "linear", lineWidth: 1, fillOpacity: 0, showPoints: "auto" };

// All that the panels set, by its path: Grafana drops what no panel has declared.
const registry = new FieldConfigOptionsRegistry();
const set = dashboard.panels.flatMap(({ fieldConfig: { defaults, overrides } }) => [
  ...Object.keys({ ...defaults, color: 0, custom: 0 }).filter((path) => path !== "custom"),
  ...Object.keys({ ...CUSTOM, ...defaults.custom }).map((path) => `custom.${path}`),
  ...overrides.flatMap(({ properties }) => properties.map(({ id }) => id)),
]);
for (const id of new Set(set)) {
  registry.register({
    id, name: id, path: id.replace("custom.", ""), isCustom: id.startsWith("custom."),
    process: (value) => value, shouldApply: () => true, override: () => null, editor: () => null,
  });
}
standardFieldConfigEditorRegistry.setInit(() => []);

function named(format, labels) {
  return format.replace(/{{\s*(\w+)\s*}}/g, (_, label) => labels[label] ?? label);
}

function frames(panel) {
  return panel.targets.flatMap(({ refId, legendFormat }) =>
    answers[panel.id][refId].map(({ metric, values }) =>
      createDataFrame({
        refId,
        fields: [
          { name: "Time", type: FieldType.time, values: values.map(([at]) => at * 1000), config: { interval: stepMs } },
          {
            name: "Value", type: FieldType.number, labels: metric, values: values.map(([, text]) => Number(text)),
            config: { displayNameFromDS: named(legendFormat, metric) },
          },
        ],
      })));
}

function Panel({ panel }) {
  const { x, y, w, h } = panel.gridPos;
  const column = (WIDTH + GAP) / COLUMNS;
  const [width, height] = [w * column - GAP, h * (ROW + GAP) - GAP];
  const { defaults, overrides } = panel.fieldConfig;
  const data = applyFieldOverrides({
    data: frames(panel),
    fieldConfig: {
      defaults: { color: { mode: FieldColorModeId.PaletteClassic }, ...defaults, custom: { ...CUSTOM, ...defaults.custom } },
      overrides,
    },
    fieldConfigRegistry: registry,
    replaceVariables: (text) => text,
    theme,
    timeZone: "utc",
  });
  const legend = { displayMode: "list", placement: "bottom", calcs: [], showLegend: true, ...panel.options?.legend };
  return (
    <div className="panel" style={{ position: "absolute", left: GAP + x * column, top: y * (ROW + GAP), width, height }}>
      <PanelChrome title={panel.title} description={panel.description} width={width} height={height}>
        {(inner, tall) => data.length === 0
          ? <div className="no-data" style={{ height: tall, display: "grid", placeItems: "center" }}>No data</div>
          : <TimeSeries frames={data} width={inner} height={tall} timeRange={range} timeZone="utc" legend={legend} />}
      </PanelChrome>
    </div>
  );
}

const bottom = Math.max(...dashboard.panels.map(({ gridPos }) => gridPos.y + gridPos.h)) * (ROW + GAP);

function Page() {
  return (
    <ThemeContext.Provider value={theme}>
      <GlobalStyles hackNoBackdropBlur={true} isExtensionSidebarOpen={false} />
      <h3 style={{ margin: GAP, height: 28 }}>{dashboard.title}</h3>
      <div style={{ position: "relative", height: bottom }}>
        {dashboard.panels.map((panel) => <Panel key={panel.id} panel={panel} />)}
      </div>
    </ThemeContext.Provider>
  );
}

initPluginTranslations("grafana").then(() => createRoot(document.getElementById("root")).render(<Page />));
