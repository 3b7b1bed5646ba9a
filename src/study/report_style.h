#pragma once
// The looks of the report: light and dark, wide and narrow.

namespace polar::study {

inline constexpr const char* kReportStyle = R"css(
:root{color-scheme:light dark;--paper:#fff;--ink:#1b1f24;--soft:#5b6470;--grid:#e3e6ea;--c0:#c2410c;
--c1:#b4369b;--c2:#15803d;--c3:#8a8f98;--c4:#2563eb;--c5:#0e8f9c;--c6:#a16207;--c7:#1b1f24;--empty:#f0f1f3;
--low:#cfdcf3;--full:#1d4ed8}
@media(prefers-color-scheme:dark){:root{--paper:#14171b;--ink:#e8eaed;--soft:#9aa3ad;--grid:#2b3036;
--c0:#fb8a4c;--c1:#ec7fd4;--c2:#4fc878;--c3:#8e959f;--c4:#7aa5ff;--c5:#45c9d6;--c6:#e0b03f;--c7:#e8eaed;
--empty:#22262b;--low:#27406e;--full:#8fb4ff}}
*{box-sizing:border-box}body{margin:0 auto;padding:1rem;max-width:60rem;background:var(--paper);
color:var(--ink);font:16px/1.5 system-ui,sans-serif}h1{font-size:1.5rem;line-height:1.25}
h2{font-size:1.15rem;margin-top:2rem}p{color:var(--soft);max-width:44rem}svg{width:100%;height:auto}
svg.map{width:auto;max-width:100%}svg.chart{min-width:34rem}svg text{fill:var(--soft);font-size:12px}.grid{stroke:var(--grid)}
.line path{fill:none;stroke:var(--line);stroke-width:2}circle{fill:var(--line)}.tried circle{opacity:.6}
.chosen circle{fill:var(--paper);stroke:var(--line);stroke-width:3}svg .name{fill:var(--ink);font-weight:600;
font-size:13px}.legend{list-style:none;padding:0;display:flex;flex-wrap:wrap;gap:.3rem 1.2rem;font-size:.9rem}
.legend i{display:inline-block;width:.8rem;height:.8rem;border-radius:2px;margin-right:.4rem}
.maps{display:flex;flex-wrap:wrap;gap:1.5rem}figure{margin:0}figcaption{color:var(--soft);font-size:.9rem}
.none{fill:var(--paper);stroke:var(--grid)}.window{fill:var(--empty)}.full{fill:var(--full)}
.routed{fill:var(--c5)}.p0,.p1,.p2,.p3{fill:var(--low)}.p1{fill:color-mix(in srgb,var(--full) 30%,var(--low))}
.p2{fill:color-mix(in srgb,var(--full) 50%,var(--low))}.p3{fill:color-mix(in srgb,var(--full) 70%,var(--low))}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.25rem .9rem .25rem 0;border-bottom:1px solid var(--grid);white-space:nowrap}
th{color:var(--soft);font-weight:500}.legend svg{width:.8rem;height:.8rem;margin-right:.4rem}
)css";

inline constexpr const char* kMapLegend = R"html(<ul class="legend">
<li><svg viewBox="0 0 12 12"><rect class="full" width="12" height="12"/></svg>everything</li>
<li><svg viewBox="0 0 12 12"><rect class="p2" width="12" height="12"/></svg>its best pages (stronger: more)</li>
<li><svg viewBox="0 0 12 12"><rect class="window" width="12" height="12"/></svg>both ends</li>
<li><svg viewBox="0 0 12 12"><rect class="none" width="12" height="12"/></svg>nothing</li>
<li><svg viewBox="0 0 12 12"><rect class="routed" width="12" height="12"/></svg>as a router says</li></ul>)html";

}  // namespace polar::study
