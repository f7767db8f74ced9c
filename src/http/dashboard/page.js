'use strict';
// One picture of one message: `/events` sends the whole state once a second, and what is on the page follows it.

const $ = id => document.getElementById(id);
const el = (name, attributes = {}, ...children) => {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith('on')) node.addEventListener(key.slice(2), value);
    else if (value === true) node.setAttribute(key, '');
    else if (value !== false && value != null) node.setAttribute(key, value);
  }
  node.append(...children.filter(child => child != null));
  return node;
};
const svg = (name, attributes = {}, ...children) => {
  const node = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
};

// Children of `parent` by key: those that stay keep their focus and their animation.
const kept = new WeakMap();
function keyed(parent, items, key, make, fill) {
  const old = kept.get(parent) ?? new Map(), now = new Map();
  let place = null;
  for (const item of items) {
    const name = key(item), node = old.get(name) ?? make(item);
    fill(node, item);
    now.set(name, node);
    const next = place ? place.nextSibling : parent.firstChild;
    if (node !== next) parent.insertBefore(node, next);
    place = node;
  }
  for (const [name, node] of old) if (!now.has(name)) node.remove();
  kept.set(parent, now);
}
const text = (node, value) => { if (node.textContent !== value) node.textContent = value; };
const show = (node, visible) => { node.hidden = !visible; };

const grouped = new Intl.NumberFormat('en');
const count = n => n < 1e6 ? grouped.format(n) : n < 1e9 ? (n / 1e6).toFixed(1) + ' M' : (n / 1e9).toFixed(1) + ' G';
const rate = n => n === 0 ? '0' : n < 10 ? n.toFixed(1) : count(Math.round(n));
const bytes = n => {
  for (const unit of ['B', 'KiB', 'MiB', 'GiB']) {
    if (n < 1024) return (unit === 'B' ? n : n.toFixed(1)) + ' ' + unit;
    n /= 1024;
  }
  return n.toFixed(1) + ' TiB';
};
const span = s => s < 1 ? '< 1 s' : s < 120 ? Math.round(s) + ' s' : s < 7200 ? Math.round(s / 60) + ' min'
  : s < 172800 ? Math.round(s / 3600) + ' h' : Math.round(s / 86400) + ' d';
const ago = time => time ? span(Math.max(0, (Date.now() - Date.parse(time)) / 1000)) + ' ago' : 'never';
const plural = (n, one, many = one + 's') => `${count(n)} ${n === 1 ? one : many}`;
const names = { postgresql: 'PostgreSQL', mysql: 'MySQL', mariadb: 'MariaDB' };

let last = null, token = sessionStorage.getItem('token'), heard = 0, chosen = 'minute';
const history = new Map(), narrow = matchMedia('(max-width: 54rem)');

// ---- what the agent says

function listen() {
  const source = new EventSource('events');
  source.addEventListener('history', event => {
    history.clear();
    for (const [name, points] of Object.entries(JSON.parse(event.data))) history.set(name, points);
  });
  source.addEventListener('state', event => {
    last = JSON.parse(event.data);
    last.report.loads ??= [];
    last.report.verified ??= [];
    heard = Date.now();
    for (const [name, point] of Object.entries(last.rates)) {
      const points = history.get(name) ?? [];
      points.push(point);
      history.set(name, points.slice(-120));
    }
    draw();
  });
  source.onerror = () => {
    // The browser tries again by itself, except where the server said no.
    if (source.readyState === EventSource.CLOSED) setTimeout(listen, 3000);
    pulse();
  };
}

function pulse() {
  const silent = (Date.now() - heard) / 1000;
  if (!last) return text($('pulse'), heard ? '' : 'waiting for the agent');
  const lost = silent > 5;
  text($('pulse'), lost ? `no answer from the agent for ${span(silent)}; what you see is old` : '');
  document.body.classList.toggle('stale', lost);
  if (lost) verdict('bad', 'connection lost');
}

function verdict(kind, words) {
  $('verdict').className = kind;
  text($('verdict'), words);
}

// ---- the picture

function draw() {
  const { report, ready } = last;
  text($('agent'), report.agent);
  document.title = `${report.agent} – anechoic`;
  judge(report, ready);
  trouble(report, ready);
  flow(report);
  work(report);
  records(report);
  storage(report);
  text($('version'), `anechoic ${last.version}, up ${span(last.up_seconds)}`);
  show($('unlock'), last.token && !token);
  lists(report);
  pulse();
}

function judge(report, ready) {
  const stopped = report.systems.filter(system => system.state === 'stopped');
  const waiting = sum(report.entities, entity => entity.waiting), held = sum(report.entities, entity => entity.quarantined);
  const paused = report.systems.filter(system => system.paused);
  const trying = report.systems.filter(system => system.state === 'retrying');
  const behind = report.systems.filter(system => system.apply && system.apply.pending > 0 && system.apply.lag_seconds > 5);
  if (stopped.length) verdict('bad', `${list(stopped.map(s => s.name))} stopped`);
  else if (report.journal.error) verdict('bad', 'the journal cannot be written');
  else if (paused.length) verdict('warn', `${list(paused.map(s => s.name))} paused`);
  else if (trying.length) verdict('warn', `${list(trying.map(s => s.name))} trying again`);
  else if (!ready.ready) verdict('warn', 'not ready');
  else if (behind.length) verdict('warn', `${list(behind.map(s => s.name))} behind`);
  else if (waiting || held) verdict('warn', 'in step, except for what waits below');
  else verdict('good', 'in step');
}
const sum = (items, of) => items.reduce((total, item) => total + of(item), 0);
const list = words => words.length < 2 ? words.join('') : words.slice(0, -1).join(', ') + ' and ' + words.at(-1);

function trouble(report, ready) {
  const items = [];
  for (const system of report.systems) {
    if (system.error) items.push({ key: 's' + system.name, bad: system.state === 'stopped', title: `${system.name} is ${system.state === 'stopped' ? 'stopped' : 'trying again'}`, text: system.error });
  }
  if (report.journal.error) items.push({ key: 'j', bad: true, title: 'The journal cannot be written; reading pauses', text: report.journal.error });
  for (const load of report.loads) if (load.error) items.push({ key: 'l' + load.entity, bad: load.state === 'failed', title: `Loading ${load.entity}`, text: load.error });
  for (const reason of ready.reasons) {
    if (/_lag$/.test(reason.reason)) items.push({ key: 'r' + reason.system + reason.reason, title: `${reason.system} is late`, text: reason.detail });
  }
  for (const found of report.verification?.entities ?? []) {
    if (found.outcome === 'different') items.push({ key: 'v' + found.entity, title: `${found.entity} differs`, text: differing(found) });
    if (found.outcome === 'failed') items.push({ key: 'v' + found.entity, title: `${found.entity} could not be compared`, text: found.error ?? '' });
  }
  show($('trouble'), items.length > 0);
  keyed($('trouble').querySelector('ul'), items, item => item.key, () => el('li', {}, el('strong'), el('span')), (node, item) => {
    node.className = item.bad ? 'bad' : '';
    text(node.firstChild, item.title);
    text(node.lastChild, item.text);
  });
}

function differing(found) {
  const systems = Object.entries(found.systems).filter(([, pair]) => pair.different + pair.missing + pair.extra > 0);
  const parts = systems.map(([name, pair]) => `${name}: ${count(pair.different)} different, ${count(pair.missing)} missing, ${count(pair.extra)} only there`);
  return `${parts.join('; ')}. Compared with ${found.against} ${ago(found.at)}; anechoic verify ${found.entity} --repair mends it.`;
}

function flow(report) {
  const spine = { spine: true };
  const items = [spine, ...report.systems.map((system, n) => ({ system, n }))];
  keyed($('flow'), items.flatMap(item => item.spine ? [item] : [item, { ...item, lanes: true }]), item => item.spine ? '' : (item.lanes ? 'l ' : 's ') + item.system.name, item => {
    if (item.spine) return el('div', { class: 'spine' }, el('span'), el('span'));
    return item.lanes ? makeLanes() : makeSystem(item.system.name);
  }, (node, item) => {
    if (item.spine) {
      node.style.setProperty('--wide', Math.ceil(report.systems.length / 2));
      node.style.setProperty('--narrow', report.systems.length);
      text(node.firstChild, 'journal');
      text(node.lastChild, count(report.journal.head));
      return;
    }
    const right = item.n % 2 === 1;
    node.style.setProperty('--wide', Math.floor(item.n / 2) + 1);
    node.style.setProperty('--narrow', item.n + 1);
    node.classList.toggle('right', right);
    if (item.lanes) fillLanes(node, item.system, right);
    else fillSystem(node, item.system);
  });
}

function makeSystem(name) {
  return el('article', { class: 'system', 'aria-label': name },
    el('header', {}, el('h3', {}, name), el('span', { class: 'kind' }), el('span', { class: 'state' })),
    el('p', { class: 'facts' }),
    svg('svg', { class: 'spark', viewBox: '0 0 119 32', preserveAspectRatio: 'none', role: 'img' }, svg('path', { class: 'in' }), svg('path', { class: 'out' })),
    el('div', { class: 'acts' }, el('button', { type: 'button', class: 'quiet', onclick: () => pauseOrResume(name) })));
}

function fillSystem(node, system) {
  text(node.querySelector('.kind'), `${names[system.kind] ?? ''} ${system.version}`.trim());
  const state = node.querySelector('.state');
  state.className = 'state ' + system.state;
  text(state, system.state);
  const lag = system.capture.lag_seconds;
  const read = lag == null ? 'not read yet' : lag < 1 ? 'read to the end' : `read to ${span(lag)} ago`;
  const kept = last.retained[system.name];
  text(node.querySelector('.facts'), kept > 0 ? `${read}, ${bytes(kept)} of log kept` : read);
  spark(node.querySelector('.spark'), history.get(system.name) ?? []);
  const button = node.querySelector('button');
  show(button.parentNode, last.token);
  text(button, system.paused ? 'Resume' : 'Pause');
  button.setAttribute('aria-label', `${button.textContent} ${system.name}`);
}

// Two minutes: what came from the system as a line, what went there as an area.
function spark(node, points) {
  const max = Math.max(1, ...points.flat()), x = n => 119 - (points.length - 1 - n), y = value => 31 - 29 * value / max;
  const line = side => points.map((point, n) => `${n ? 'L' : 'M'}${x(n)} ${y(point[side]).toFixed(1)}`).join('');
  node.querySelector('.out').setAttribute('d', line(0));
  node.querySelector('.in').setAttribute('d', points.length ? `${line(1)}L119 31L${x(0)} 31Z` : '');
  const [out, into] = points.at(-1) ?? [0, 0];
  node.setAttribute('aria-label', `the last two minutes; now ${rate(out)} changes a second from it, ${rate(into)} to it`);
}

function makeLanes() {
  const lane = name => el('div', { class: 'lane ' + name }, el('span'),
    svg('svg', { viewBox: '0 0 100 12', preserveAspectRatio: 'none', 'aria-hidden': 'true' }, svg('line', { y1: 6, y2: 6 }), svg('line', { class: 'move', y1: 6, y2: 6 }), svg('path', {})));
  return el('div', { class: 'lanes' }, lane('from'), lane('to'));
}

function fillLanes(node, system, right) {
  const [out, into] = (history.get(system.name) ?? []).at(-1) ?? [0, 0];
  const apply = system.apply;
  const towards = right || narrow.matches;
  arrow(node.querySelector('.from'), out, !towards, `${rate(out)}/s`, '');
  arrow(node.querySelector('.to'), apply ? into : 0, towards, apply ? `${rate(into)}/s` : 'reads only', apply && apply.pending ? `${plural(apply.pending, 'entry', 'entries')}, ${span(apply.lag_seconds)} late` : '');
  node.querySelector('.to').classList.toggle('late', Boolean(apply && apply.lag_seconds > 5 && apply.pending));
}

function arrow(node, now, rightwards, words, note) {
  node.classList.toggle('flows', now > 0);
  const [a, b] = rightwards ? [0, 94] : [100, 6];
  for (const line of node.querySelectorAll('line')) { line.setAttribute('x1', a); line.setAttribute('x2', b); }
  node.querySelector('path').setAttribute('d', rightwards ? 'M92 1L100 6L92 11Z' : 'M8 1L0 6L8 11Z');
  const label = node.firstChild;
  const key = words + note;
  if (label.dataset.key !== key) {
    label.dataset.key = key;
    label.replaceChildren(el('b', {}, words), note ? el('span', {}, ' · ' + note) : '');
  }
}

function work(report) {
  const items = [
    ...report.loads.filter(load => load.state !== 'done').map(load => ({ kind: 'Loading', load })),
    ...report.verified.filter(load => load.state !== 'done').map(load => ({ kind: 'Comparing', load })),
  ];
  if (report.verification?.comparing) items.push({ kind: 'Comparing', load: { entity: report.verification.comparing, from: '', read: 0, state: 'in the background' } });
  show($('work'), items.length > 0);
  keyed($('work').querySelector('ul'), items, item => item.kind + item.load.entity, item => el('li', {}, el('strong'), ' ', el('span'), el('progress', { 'aria-label': `${item.kind} ${item.load.entity}` })), (node, { kind, load }) => {
    const [title, facts, bar] = node.children;
    text(title, `${kind} ${load.entity}${load.from ? ` from ${load.from}` : ''}`);
    text(facts, [load.state, load.read ? plural(load.read, 'row') + (load.total ? ` of about ${count(load.total)}` : '') : ''].filter(Boolean).join(', '));
    if (load.total) { bar.max = load.total; bar.value = Math.min(load.read, load.total); } else bar.removeAttribute('value');
  });
}

function records(report) {
  const table = $('records');
  if (!table.tHead) {
    const head = ['Record', 'Written', 'Delivered', 'Conflicts', 'Rejected', 'Held', 'Last change', ''];
    table.append(el('thead', {}, el('tr', {}, ...head.map(word => el('th', { scope: 'col' }, word)))), el('tbody'));
  }
  const rows = report.entities.flatMap(entity => {
    const parts = last.volumes.filter(volume => volume.entity === entity.name);
    return [{ entity, parts }, ...parts.map(part => ({ entity, part }))];
  });
  keyed(table.tBodies[0], rows, row => row.part ? `${row.entity.name}/${row.part.system}` : row.entity.name, row => {
    const cells = Array.from({ length: 6 }, () => el('td'));
    const refresh = row.part ? null : el('button', { type: 'button', class: 'quiet', 'aria-label': `Refresh ${row.entity.name}`, onclick: () => refreshEntity(row.entity.name) }, 'Refresh');
    return el('tr', { class: row.part ? 'part' : null }, row.part ? el('td', {}, row.part.system) : el('th', { scope: 'row' }, row.entity.name), ...cells, el('td', {}, refresh));
  }, (node, { entity, part, parts }) => {
    const cell = n => node.children[n];
    const number = (n, value, alarming) => {
      text(cell(n), value == null ? '' : count(value));
      cell(n).className = value === 0 ? 'zero' : alarming && value ? 'some' : '';
    };
    const volume = side => part ? part[side][chosen] : sum(parts, part => part[side][chosen]);
    number(1, volume('captured'));
    number(2, volume('applied'));
    number(3, part ? null : entity.conflicts, entity.waiting > 0);
    number(4, part ? null : entity.rejected);
    number(5, part ? null : entity.quarantined, true);
    text(cell(6), part ? '' : ago(entity.last_change));
    if (!part) show(cell(7).firstChild, last.token);
  });
}

function storage(report) {
  const items = [['Journal', bytes(report.journal.bytes)], ['Journal entries', count(report.journal.head)]];
  for (const system of report.systems) {
    const kept = last.retained[system.name];
    if (kept != null) items.push([`${system.kind === 'postgresql' ? 'WAL' : 'Binlog'} kept by ${system.name}`, bytes(kept)]);
  }
  keyed($('storage'), items, item => item[0], item => el('div', {}, el('dt', {}, item[0]), el('dd')), (node, item) => text(node.lastChild, item[1]));
}

// ---- what waits for a person

let listed = '', cases = [];

// Asked for only where the counts moved.
async function lists(report) {
  const state = JSON.stringify(report.entities.map(e => [e.conflicts, e.waiting, e.rejected, e.quarantined]));
  if (state === listed) return;
  listed = state;
  try {
    const [held, conflicts] = await Promise.all([get('quarantine'), get('conflicts?limit=20')]);
    cases = [...held.map(held => ({ held })), ...conflicts.map(conflict => ({ conflict }))];
  } catch (error) {
    listed = '';
    return;
  }
  drawCases();
}

function drawCases() {
  const box = $('lists');
  keyed(box, cases.length ? cases : [{}], item => item.held ? `q ${item.held.system} ${item.held.entity} ${item.held.key}` : item.conflict ? 'c ' + item.conflict.id : '', item => {
    if (!item.held && !item.conflict) return el('p', { class: 'none' }, 'None. Every change so far was written or superseded.');
    const { held, conflict } = item;
    const name = held ? `${held.entity} ${held.key}, in quarantine at ${held.system}` : `${conflict.entity} ${conflict.key ?? ''}, ${conflict.system} against ${conflict.against}`;
    return el('article', { class: 'case', 'aria-label': name }, el('span', { class: 'key' }), el('span', { class: 'why' }), el('span', { class: 'acts' }));
  }, (node, item) => {
    if (item.held) heldCase(node, item.held);
    else if (item.conflict) conflictCase(node, item.conflict);
  });
}

function heldCase(node, held) {
  const [key, why, acts] = node.children;
  text(key, `${held.entity} ${held.key}`);
  text(why, `in quarantine at ${held.system}, ${ago(held.at)}: ${held.reason}`);
  if (!acts.children.length) {
    acts.append(
      act('Values', `Values of ${held.entity} ${held.key}`, () => values(node, `quarantine?values=true`, all => {
        const found = all.find(other => other.system === held.system && other.entity === held.entity && other.key === held.key);
        return found ? images(found.before, found.after) : 'It is not held any more.';
      })),
      act('Retry', `Retry ${held.entity} ${held.key}`, () => post(`quarantine/retry`, { system: held.system, entity: held.entity, key: held.key }, 'tried again')),
      act('Drop', `Drop ${held.entity} ${held.key}`, () => confirm(`Drop what ${held.system} lacks of ${held.entity} ${held.key}? The row there stays as it is, and differs from the others.`, 'Drop',
        () => post(`quarantine/drop`, { system: held.system, entity: held.entity, key: held.key }, 'dropped')), 'danger'));
  }
  show(acts, last.token);
}

function conflictCase(node, conflict) {
  const [key, why, acts] = node.children;
  text(key, `${conflict.entity} ${conflict.key ?? ''}`);
  const waits = conflict.open ? 'waits for a decision' : conflict.settled ? `${conflict.outcome}, then ${conflict.settled}` : conflict.outcome;
  text(why, `${conflict.system} against ${conflict.against}, by ${conflict.rule}: ${waits}, ${ago(conflict.at)}`);
  if (acts.dataset.open !== String(conflict.open)) {
    acts.dataset.open = conflict.open;
    acts.replaceChildren(act('Values', `Values of conflict ${conflict.id}`, () => values(node, `conflicts/${conflict.id}`, shown =>
      `${conflict.system}\n${version(shown.change)}\n\n${conflict.against}\n${version(shown.against)}`)));
    if (conflict.open) {
      for (const system of [conflict.system, conflict.against]) {
        acts.append(act(`Take ${system}`, `Take ${system}'s version of ${conflict.entity} ${conflict.key ?? ''}`, () => confirm(`Take ${system}'s version of ${conflict.entity} ${conflict.key ?? ''} everywhere?`, `Take ${system}`,
          () => post(`conflicts/${conflict.id}/resolve`, { take: system }, 'decided'))));
      }
    }
  }
  show(acts, last.token);
}

const act = (word, label, onclick, kind = '') => el('button', { type: 'button', class: 'quiet ' + kind, 'aria-label': label, onclick }, word);
const version = shown => shown ? images(shown.before, shown.after) : 'not in the journal any more';

function images(before, after) {
  const fields = [...new Set([...Object.keys(before ?? {}), ...Object.keys(after ?? {})])];
  const value = (image, field) => image == null ? '' : image[field] === undefined ? '·' : image[field] === null ? 'NULL' : String(image[field]);
  if (before && after) return fields.map(field => value(before, field) === value(after, field) ? `${field}: ${value(after, field)}` : `${field}: ${value(before, field)} → ${value(after, field)}`).join('\n');
  return fields.map(field => `${field}: ${value(before ?? after, field)}`).join('\n') + (after ? '' : '\n(deleted)');
}

async function values(node, path, words) {
  const open = node.querySelector('pre');
  if (open) return open.remove();
  if (!await unlock()) return;
  try {
    node.append(el('pre', {}, words(await get(path))));
  } catch (error) {
    say(error.message);
  }
}

// ---- what a person does

async function request(method, path, body) {
  const headers = {};
  if (token) headers.authorization = `Bearer ${token}`;
  if (body !== undefined) headers['content-type'] = 'application/json';
  const answer = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  const said = await answer.text();
  if (answer.status === 401 || answer.status === 403) { token = null; sessionStorage.removeItem('token'); if (last) show($('unlock'), last.token); }
  let value = null;
  try { value = JSON.parse(said); } catch { /* words */ }
  if (!answer.ok) throw new Error(value?.error ? [value.error, value.hint].filter(Boolean).join('; ') : said || answer.statusText);
  return value;
}
const get = path => request('GET', path);

async function post(path, body, done) {
  if (!await unlock()) return;
  try {
    await request('POST', path, body ?? {});
    say(done);
    listed = '';
  } catch (error) {
    say(error.message);
  }
}

const pauseOrResume = name => {
  const system = last.report.systems.find(system => system.name === name), paused = system.paused;
  return post(`systems/${name}/${paused ? 'resume' : 'pause'}`, {}, `${name} ${paused ? 'goes on' : 'is paused'}`);
};
const refreshEntity = name => confirm(`Read all of ${name} from its authority and write what differs into the other systems?`, 'Refresh',
  () => post(`entities/${name}/load`, {}, `${name} is being read`));

function ask(fill) {
  return new Promise(resolve => {
    const dialog = $('ask'), form = dialog.querySelector('form');
    fill(form);
    dialog.returnValue = '';
    dialog.onclose = () => resolve(dialog.returnValue === 'yes' ? form : null);
    dialog.showModal();
  });
}

async function confirm(question, word, then) {
  const form = await ask(form => form.replaceChildren(el('p', {}, question),
    el('div', { class: 'acts' }, el('button', { value: 'no' }, 'Cancel'), el('button', { value: 'yes', class: 'primary' }, word))));
  if (form) await then();
}

async function unlock() {
  if (token) return true;
  const form = await ask(form => form.replaceChildren(
    el('label', {}, 'Token (agent.token_file)', el('input', { name: 'token', type: 'password', autocomplete: 'off', required: true })),
    el('div', { class: 'acts' }, el('button', { value: 'no', formnovalidate: true }, 'Cancel'), el('button', { value: 'yes', class: 'primary' }, 'Unlock'))));
  if (!form) return false;
  token = form.elements.token.value.trim();
  form.replaceChildren();
  sessionStorage.setItem('token', token);
  show($('unlock'), false);
  return true;
}

let saying;
function say(words) {
  text($('said'), words);
  show($('said'), true);
  clearTimeout(saying);
  saying = setTimeout(() => show($('said'), false), 6000);
}

$('unlock').addEventListener('click', unlock);
for (const button of $('window').children) {
  button.addEventListener('click', () => {
    chosen = button.dataset.window;
    for (const other of $('window').children) other.setAttribute('aria-pressed', String(other === button));
    if (last) draw();
  });
}
narrow.addEventListener('change', () => { if (last) draw(); });
setInterval(pulse, 1000);
listen();
