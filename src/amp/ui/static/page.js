// Draws what /api/state says. Every text goes in as text, never as markup: names of streams are anybody's.
'use strict';

const number = new Intl.NumberFormat('en');
const byId = (id) => document.getElementById(id);
const open = new Set();

const element = (name, className, text) => {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
};

const amount = (value) => (value === null || value === undefined ? '–' : number.format(value));

const duration = (seconds) => {
  if (seconds === null || seconds === undefined) return '–';
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
};

const ago = (iso) => {
  if (!iso) return 'never';
  const seconds = Math.max(0, (Date.now() - new Date(iso)) / 1000);
  return `${duration(seconds)} ago`;
};

function ribbon(holder, net, reorgs) {
  const spans = [...net.ranges, ...net.gaps, ...net.running];
  if (!spans.length) return;
  const first = Math.min(...spans.map((s) => s[0]));
  const last = Math.max(net.head ?? 0, ...spans.map((s) => s[1]));
  const width = last - first + 1;
  const piece = (kind, from, to) => {
    const part = element('i', kind);
    part.style.left = `${((from - first) / width) * 100}%`;
    part.style.width = `${((to - from + 1) / width) * 100}%`;
    part.title = `${kind}: ${number.format(from)} to ${number.format(to)}`;
    holder.append(part);
  };
  net.ranges.forEach(([from, to]) => piece('done', from, to));
  net.gaps.forEach(([from, to]) => piece('gap', from, to));
  net.running.forEach(([from, to]) => piece('running', from, to));
  reorgs.filter((r) => r.at_block >= first).forEach((r) => piece('reorg', r.at_block - r.depth + 1, r.at_block));
  const done = net.ranges.reduce((sum, [from, to]) => sum + to - from + 1, 0);
  holder.setAttribute('aria-label', `${number.format(done)} blocks loaded, ${net.gaps.length} gaps`);
  const [left, right] = holder.nextElementSibling.children;
  left.textContent = number.format(first);
  right.textContent = number.format(last);
}

function networkOf(net, reorgs) {
  const made = byId('network').content.cloneNode(true);
  const facts = [
    ['network', net.network],
    ['head', amount(net.head)],
    ['durable', amount(net.durable)],
    ['can be undone from', amount(net.retained)],
    ['blocks behind', amount(net.lag)],
    ['there in', net.lag === null || net.lag > 0 ? duration(net.seconds_left) : 'now'],
    ['gaps', amount(net.gaps.length)],
  ];
  if (net.running.length) facts.push(['partitions at work', amount(net.running.length)]);
  const list = made.querySelector('dl');
  facts.forEach(([term, value]) => {
    const pair = element('div');
    pair.append(element('dt', '', term), element('dd', '', value));
    list.append(pair);
  });
  ribbon(made.querySelector('.ribbon'), net, reorgs);
  return made;
}

function streamOf(place, one, reorgs) {
  const made = byId('stream').content.cloneNode(true);
  const title = made.querySelector('h2');
  title.append(one.table, ' ');
  title.append(element('small', '', one.stream === one.table ? place : `${one.stream} · ${place}`));
  const parts = [`last commit ${ago(one.committed_at)}`, `writer ${one.owner}`];
  if (one.lanes) parts.push(`${one.lanes} workers' lanes`);
  made.querySelector('.about').textContent = parts.join(' · ');
  if (one.server) made.querySelector('.about').after(element('p', 'problem', one.server));
  const networks = made.querySelector('.networks');
  one.networks.forEach((net) => {
    const own = reorgs.filter((r) => r.table === one.table && r.stream === one.stream && r.network === net.network);
    networks.append(networkOf(net, own));
  });
  const details = made.querySelector('details');
  const key = `${place}\n${one.table}\n${one.stream}`;
  details.open = open.has(key);
  details.addEventListener('toggle', () => (details.open ? open.add(key) : open.delete(key)));
  const commands = made.querySelector('.commands');
  one.commands.forEach(({ what, line }) => {
    const item = element('li');
    const copy = element('button', '', 'copy');
    copy.addEventListener('click', async () => {
      await navigator.clipboard.writeText(line);
      copy.textContent = 'copied';
    });
    item.append(element('span', '', what), element('code', '', line), copy);
    commands.append(item);
  });
  return made;
}

// Plotly reads a little markup in the texts that it is given.
const plain = (text) => text.replaceAll('&', '&amp;').replaceAll('<', '&lt;');

const style = () => getComputedStyle(document.documentElement);

function chart(id, traces, empty, more = {}) {
  const holder = byId(id);
  if (!traces.some((trace) => trace.x.length)) {
    holder.classList.add('empty');
    holder.textContent = empty;
    return;
  }
  if (holder.classList.contains('empty')) {
    holder.classList.remove('empty');
    holder.textContent = '';
  }
  const ink = style().getPropertyValue('color');
  const layout = {
    margin: { l: 46, r: 12, t: 8, b: 28 }, height: 190, showlegend: traces.length > 1,
    legend: { orientation: 'h', y: 1.15 }, paper_bgcolor: 'transparent', plot_bgcolor: 'transparent',
    font: { color: ink, size: 11 }, xaxis: { type: 'date', gridcolor: 'rgba(128,128,128,.18)' },
    yaxis: { rangemode: 'tozero', gridcolor: 'rgba(128,128,128,.18)' }, ...more,
  };
  Plotly.react(holder, traces, layout, { displayModeBar: false, responsive: true });
}

const times = (rows) => rows.map((row) => new Date(row[0] * 1000));

function rates(figures, of, per) {
  const x = [], y = [];
  for (let i = 1; i < figures.length; i += 1) {
    const [t0, a] = figures[i - 1], [t1, b] = figures[i];
    const rise = b[of] - a[of], base = per ? b[per] - a[per] : t1 - t0;
    if (rise < 0 || base < 0) continue; // a process began anew
    x.push(new Date(t1 * 1000));
    y.push(base > 0 ? rise / base : null);
  }
  return { x, y, mode: 'lines', connectgaps: true };
}

function charts(state) {
  const lags = [];
  state.destinations.forEach((place) => place.streams.forEach((one) => one.networks.forEach((net) => {
    const known = net.samples.filter(([, durable, head]) => durable !== null && head !== null);
    lags.push({ x: times(known), y: known.map(([, durable, head]) => head - durable), mode: 'lines', name: plain(`${one.stream} ${net.network}`) });
  })));
  chart('lag', lags, state.source ? 'The server has not answered yet.' : 'Give --source URL to see the server’s head.');
  const without = state.metrics.addresses.length ? 'Nothing yet.' : 'Run amp with --metrics HOST:PORT, and give it here too.';
  chart('rows', [{ ...rates(state.figures, 'rows'), fill: 'tozeroy' }], without);
  chart('commits', [rates(state.figures, 'commit_seconds', 'commits')], without);
  chart('retries', [{ ...rates(state.figures, 'retries', null), type: 'bar', mode: undefined }], without);
  const at = state.reorgs.map((r) => new Date(r.at));
  const text = state.reorgs.map((r) => plain(`${r.stream} ${r.network}`));
  const bars = [{ x: at, y: state.reorgs.map((r) => r.depth), type: 'bar', name: 'depth', text }];
  if (state.reorgs.some((r) => r.rows !== null)) {
    bars.push({ x: at, y: state.reorgs.map((r) => r.rows), mode: 'markers', name: 'rows undone', yaxis: 'y2' });
  }
  chart('reorgs', bars, 'None seen since this page was started.', { margin: { l: 46, r: 46, t: 8, b: 28 }, yaxis2: { overlaying: 'y', side: 'right', rangemode: 'tozero', showgrid: false } });
}

function show(state) {
  byId('source').textContent = state.source ? `server ${state.source}` : 'no server';
  byId('seen').textContent = state.at ? `seen ${new Date(state.at).toLocaleTimeString()}` : 'looking …';
  const streams = byId('streams');
  streams.replaceChildren();
  state.destinations.forEach((place) => {
    if (place.problem || !place.streams.length) {
      const card = element('article');
      card.append(element('h2', '', place.name));
      card.append(element('p', place.problem ? 'problem' : 'about', place.problem ?? 'No streams here yet.'));
      if (place.problem && place.hint) card.append(element('p', 'about', place.hint));
      streams.append(card);
    }
    const reorgs = state.reorgs.filter((r) => r.destination === place.name);
    place.streams.forEach((one) => streams.append(streamOf(place.name, one, reorgs)));
  });
  tell(state.metrics ? state.metrics.problems.join(' · ') : '');
  if (state.metrics) charts(state);
}

function tell(text) {
  byId('problem').hidden = !text;
  byId('problem').textContent = text;
}

async function look() {
  try {
    const answer = await fetch('/api/state');
    if (!answer.ok) throw new Error(await answer.text());
    show(await answer.json());
  } catch (error) {
    tell(`amp ui does not answer any more: ${error.message}`);
  }
  setTimeout(look, 2000);
}

look();
