"""The page's style sheet. System fonts only: the page must look the same without a network."""

CSS = """
:root { --ink:#1b2430; --muted:#5d6876; --line:#e2e7ee; --paper:#fbfcfd; --card:#ffffff; --accent:#2f6fb0;
  --good:#3f7d45; --bad:#b8324a; }
@media (prefers-color-scheme: dark) {
  :root { --ink:#e6eaf0; --muted:#9aa6b5; --line:#2c3644; --paper:#12181f; --card:#1a222c; --accent:#7fb2e5;
    --good:#86c58c; --bad:#f08a9a; }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin:0; background:var(--paper); color:var(--ink); line-height:1.6;
  font:16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 56px 28px 96px; }
header { margin-bottom: 40px; }
h1 { font-size: 2.1rem; line-height:1.2; margin: 0 0 10px; letter-spacing:-.015em; }
h2 { font-size: 1.35rem; margin: 64px 0 8px; letter-spacing:-.01em; }
h3 { font-size: 1rem; margin: 28px 0 6px; }
p { margin: 0 0 14px; max-width: 74ch; }
.lead { font-size: 1.1rem; color: var(--muted); }
.eyebrow { text-transform:uppercase; letter-spacing:.09em; font-size:.75rem; font-weight:600;
  color:var(--accent); margin:0 0 8px; }
small, .quiet { color: var(--muted); font-size: .875rem; }
code, pre { font: .875rem/1.55 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
pre { background:var(--card); border:1px solid var(--line); border-radius:10px; padding:14px 18px; overflow-x:auto; }
.cards { display:grid; grid-template-columns: repeat(auto-fit, minmax(225px, 1fr)); gap:16px; margin:24px 0 8px; }
.card { background:var(--card); border:1px solid var(--line); border-radius:12px; padding:18px 20px; }
.card b { display:block; font-size:1.9rem; line-height:1.15; letter-spacing:-.02em; font-variant-numeric:tabular-nums; }
.card span { display:block; font-size:.875rem; color:var(--muted); }
.card .label { color:var(--ink); font-weight:600; margin-bottom:6px; }
.up { color:var(--good); } .down { color:var(--bad); }
.scroll { overflow-x:auto; margin:16px 0; border:1px solid var(--line); border-radius:12px; background:var(--card); }
table { border-collapse:collapse; width:100%; font-size:.9rem; font-variant-numeric:tabular-nums; }
th, td { padding:9px 13px; text-align:right; vertical-align:top; border-bottom:1px solid var(--line); }
thead th { white-space:nowrap; color:var(--muted); font-weight:600; font-size:.78rem;
  line-height:1.3; vertical-align:bottom; }
th:first-child, td.text { text-align:left; }
tbody th { font-weight:600; white-space:nowrap; }
tbody th small { display:block; margin-left:1.45em; font-weight:400; font-size:.8rem; line-height:1.4;
  min-width:220px; white-space:normal; }
tbody tr:last-child th, tbody tr:last-child td { border-bottom:0; }
td.best { font-weight:700; }
.swatch { display:inline-block; width:.7em; height:.7em; border-radius:3px; margin-right:.5em; }
figure { margin:18px 0; }
figure img { display:block; max-width:100%; height:auto; background:#fff; border:1px solid var(--line);
  border-radius:12px; padding:12px; }
figcaption { color:var(--muted); font-size:.875rem; margin-top:8px; max-width:80ch; }
.sample { display:grid; grid-template-columns: 300px minmax(0, 1fr); gap:24px; background:var(--card);
  border:1px solid var(--line); border-radius:12px; padding:18px; margin:18px 0; }
.sample img { width:100%; height:auto; border-radius:8px; display:block; }
.sample table { font-size:.85rem; }
.sample th, .sample td { padding:5px 8px; text-align:left; }
.sample thead th { white-space:normal; }
.sample .scroll { border:0; margin:8px 0 0; background:none; }
.sample .questions { grid-column: 1 / -1; }
.sample h3 { margin:0 0 2px; }
.sample h3 + .quiet { margin-bottom:10px; }
.right { color:var(--good); } .wrong { color:var(--bad); }
details { margin:14px 0; } summary { cursor:pointer; color:var(--accent); }
@media (max-width: 760px) { .sample { grid-template-columns: minmax(0, 1fr); } main { padding:32px 18px 64px; } }
"""
