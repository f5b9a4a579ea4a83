"""How the page looks: one column on a phone, by day and by night."""

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c1f23; --soft: #5a626c; --line: #c9ced6; --wash: #f4f6f8;
  --good: #1b6e20; --bad: #b00020; --open: #8a5a00; --link: #1f5fae;
  --shade: #0003 }
@media (prefers-color-scheme: dark) { :root { --paper: #15181c; --ink: #e6e9ed; --soft: #a3acb8; --line: #49515c;
  --wash: #1f242a; --good: #7fd486; --bad: #ff8a96; --open: #f2c063; --link: #8ab8f5;
  --shade: #fff3 } }
@media print { :root { color-scheme: light; --paper: #fff; --ink: #000; --line: #bbb } details { display: none } }
* { box-sizing: border-box }
html { -webkit-text-size-adjust: 100% }
body { font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; background: var(--paper);
  color: var(--ink); max-width: 62rem; margin: 0 auto; padding: 1rem; overflow-wrap: break-word }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0 1rem } h2 { font-size: 1.2rem; margin: 2rem 0 .5rem }
h3 { font-size: 1rem; margin: 0 0 .25rem } section > h3 { margin-top: 1.2rem } p { margin: .4rem 0 }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, monospace; font-size: .9em }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--wash); padding: .6rem; border-radius: .4rem }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .6rem 1rem; margin: 0 }
dt { color: var(--soft); font-size: .85rem } dd { margin: 0; font-weight: 600; overflow-wrap: anywhere }
/* Shadows at the sides where there is more to see. */
.scroll { overflow-x: auto; max-width: 100%; background:
  linear-gradient(to right, var(--paper) 30%, transparent) left / 2rem 100% no-repeat local,
  linear-gradient(to left, var(--paper) 30%, transparent) right / 2rem 100% no-repeat local,
  linear-gradient(to right, var(--shade), transparent) left / .7rem 100% no-repeat scroll,
  linear-gradient(to left, var(--shade), transparent) right / .7rem 100% no-repeat scroll }
table { border-collapse: collapse; margin: .4rem 0; font-size: .9rem }
td, th { border-bottom: 1px solid var(--line); padding: .25rem .6rem .25rem 0; text-align: left; vertical-align: top }
th { color: var(--soft); font-weight: 600 } tbody th { white-space: nowrap }
td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
td { overflow-wrap: break-word; min-width: 3.5rem; max-width: 24rem }
td.t { min-width: 11rem } td.s { white-space: nowrap }
@media (max-width: 30rem) { tbody th { white-space: normal; min-width: 6rem } }
.verdict { border-left: .35rem solid var(--line); background: var(--wash); padding: .6rem .9rem; border-radius: .2rem }
.verdict.accepted { border-color: var(--good) } .verdict.rejected { border-color: var(--bad) }
.verdict.unproven { border-color: var(--open) } .verdict strong { display: block }
.succeeded, .accepted { color: var(--good) } .failed, .rejected { color: var(--bad) }
.unproven, .cancelled { color: var(--open) } .verdict { color: inherit }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1.5rem }
figure { margin: 0; min-width: 0 } svg { width: 100%; height: auto; display: block }
.key { list-style: none; margin: .2rem 0; padding: 0; display: flex; flex-wrap: wrap; gap: .1rem .9rem;
  font-size: .85rem }
.note { color: var(--soft); font-size: .9rem } details { margin: .3rem 0 }
summary { cursor: pointer; color: var(--link) }
.tree, .tree ul { list-style: none; margin: 0; padding: 0 } .tree ul { border-left: 2px solid var(--line);
  margin-left: .45rem; padding-left: .8rem } .tree li { margin: .35rem 0 }
.tree .here { display: inline-block; background: var(--wash);
  outline: 2px solid var(--link); border-radius: .3rem; padding: .1rem .3rem }
.tree small { color: var(--soft) } ol.steps { padding-left: 1.4rem } ol.steps li { margin: .5rem 0 }
ol.steps .here { color: var(--link) }
main, section, li, details { min-width: 0 } code { overflow-wrap: anywhere }
"""
