/* Makes the figures, switches, table and buttons of a page work.

   The data are the JSON in the element #data: styles of the methods, figures
   (see figures.js), texts to save. Nothing is loaded from elsewhere. */
(() => {
  'use strict';

  const page = JSON.parse(document.getElementById('data').textContent);
  const plots = [...document.querySelectorAll('[data-figure]')];
  const options = {x: 'steps', scale: 'auto', values: 'values'};
  const hidden = new Set();
  const all = (selector, root = document) => [
    ...root.querySelectorAll(selector),
  ];

  function say(text) {
    document.querySelector('.status').textContent = text;
  }

  const {color, content, layoutOf} = figuresOf(page, options, hidden);

  // Drawing

  function draw(box) {
    if (!box.clientWidth) return; // in a folded section
    const figure = page.figures[box.dataset.figure];
    const {traces, layout} = content(figure, box);
    box.classList.add('drawn');
    let plot = box.querySelector('.js-plot');
    if (!plot) {
      plot = box.appendChild(document.createElement('div'));
      plot.className = 'js-plot';
    }
    Plotly.react(plot, traces, layoutOf(layout, box), {displayModeBar: false});
    if (!plot.dataset.ready && figure.curves) {
      plot.dataset.ready = 'yes';
      plot.on('plotly_hover', ({points}) =>
        highlight(points[0].data.legendgroup, [plot]),
      );
      plot.on('plotly_unhover', () => highlight(null, [plot]));
    }
  }

  function drawAll() {
    plots.forEach(draw);
  }

  function highlight(method, among = all('.js-plot[data-ready]')) {
    for (const plot of among) {
      const opacity = [];
      const width = [];
      for (const {legendgroup, meta} of plot.data) {
        const lit = legendgroup === method;
        if (meta === 'band') opacity.push(lit ? 1 : 0);
        else opacity.push(method === null || lit ? 1 : 0.25);
        if (meta === 'band') width.push(0);
        else width.push(lit ? 3.2 : 2);
      }
      if (opacity.length) Plotly.restyle(plot, {opacity, 'line.width': width});
    }
  }

  // Buttons and switches

  all('[data-option]').forEach((select) => {
    select.addEventListener('change', () => {
      options[select.dataset.option] = select.value;
      drawAll();
    });
  });

  all('.methods button').forEach((button) => {
    const {method} = button.dataset;
    button.addEventListener('click', () => {
      if (!hidden.delete(method)) hidden.add(method);
      button.setAttribute('aria-pressed', String(!hidden.has(method)));
      drawAll();
    });
    for (const event of ['pointerenter', 'focus']) {
      button.addEventListener(event, () => highlight(method));
    }
    for (const event of ['pointerleave', 'blur']) {
      button.addEventListener(event, () => highlight(null));
    }
  });

  const dark = matchMedia('(prefers-color-scheme: dark)');
  const root = document.documentElement;
  document.querySelector('.theme').addEventListener('click', () => {
    const now = root.dataset.theme || (dark.matches ? 'dark' : 'light');
    root.dataset.theme = now === 'dark' ? 'light' : 'dark';
    drawAll();
  });
  dark.addEventListener('change', drawAll);

  // The table

  function sortBy(table, column, button) {
    const head = button.closest('th');
    const descending = head.getAttribute('aria-sort') === 'ascending';
    all('th[aria-sort]', table).forEach((th) => th.removeAttribute('aria-sort'));
    head.setAttribute('aria-sort', descending ? 'descending' : 'ascending');
    const sign = descending ? -1 : 1;
    const body = table.tBodies[0];
    const key = (row) => {
      const cell = row.cells[column];
      if (column === 0) return cell.textContent.trim().toLowerCase();
      return cell.dataset.value === undefined ? NaN : +cell.dataset.value;
    };
    const compare = (a, b) => {
      const [x, y] = [key(a), key(b)];
      if (Number.isNaN(x) || Number.isNaN(y)) {
        return Number.isNaN(x) - Number.isNaN(y); // missing values come last
      }
      return sign * (typeof x === 'string' ? x.localeCompare(y) : x - y);
    };
    body.append(...[...body.rows].sort(compare));
  }

  all('table.sortable').forEach((table) => {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement('button');
      button.type = 'button';
      const note = head.querySelector('small');
      button.textContent = head.firstChild.textContent.trim();
      button.setAttribute('aria-label', `Sort by ${button.textContent}`);
      head.firstChild.replaceWith(button);
      if (note) head.append(note);
      button.addEventListener('click', () => sortBy(table, column, button));
    });
  });

  function hint() {
    all('.hint').forEach((element) => {
      const {scrollWidth, clientWidth} = element.nextElementSibling;
      element.style.display = scrollWidth > clientWidth ? 'block' : 'none';
    });
  }

  // Saving and copying

  function save(name, address) {
    const link = document.createElement('a');
    link.href = address;
    link.download = name;
    link.click();
    say(`Saved ${name}`);
  }

  all('[data-download]').forEach((button) => {
    const name = button.dataset.download;
    button.addEventListener('click', () => {
      const blob = new Blob([page.downloads[name]], {type: 'text/plain'});
      const address = URL.createObjectURL(blob);
      save(name, address);
      setTimeout(() => URL.revokeObjectURL(address), 1e4);
    });
  });

  all('[data-save]').forEach((button) => {
    const {save: name, format} = button.dataset;
    button.addEventListener('click', async () => {
      const plot = button.closest('figure').querySelector('.js-plot');
      const {width, height} = plot.getBoundingClientRect();
      const shown = {
        data: plot.data,
        layout: {...plot.layout, paper_bgcolor: color('--panel')},
      };
      const size = {width: Math.round(width), height: Math.round(height)};
      const scale = format === 'png' ? 3 : 1;
      save(
        `${name}.${format}`,
        await Plotly.toImage(shown, {format, scale, ...size}),
      );
    });
  });

  all('[data-copy]').forEach((button) => {
    const source = document.getElementById(button.dataset.copy);
    button.addEventListener('click', async () => {
      try {
        await navigator.clipboard.writeText(source.textContent);
        say('Copied');
        button.textContent = 'Copied';
        setTimeout(() => (button.textContent = 'Copy'), 1500);
      } catch {
        // Without the permission the reader copies the selection.
        getSelection().selectAllChildren(source);
        say('Selected: copy it with the keyboard');
      }
    });
  });

  // The page: folded sections, size of the window, print

  all('details').forEach((section) => {
    section.addEventListener('toggle', () => {
      if (section.open) all('[data-figure]', section).forEach(draw);
      hint();
    });
  });

  function openTarget() {
    const section = document.getElementById(location.hash.slice(1));
    if (section && 'open' in section) section.open = true;
  }
  addEventListener('hashchange', openTarget);
  openTarget();

  let waiting;
  addEventListener('resize', () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      hint();
      drawAll();
    }, 120);
  });

  let folded = [];
  let theme;
  addEventListener('beforeprint', () => {
    folded = all('details:not([open])');
    folded.forEach((section) => (section.open = true));
    theme = root.dataset.theme;
    root.dataset.theme = 'light';
    drawAll();
    // Paper is narrower than most windows: drawings shrink with their column.
    all('.js-plot .main-svg').forEach((svg) => {
      const [width, height] = ['width', 'height'].map((name) =>
        svg.getAttribute(name),
      );
      svg.setAttribute('viewBox', `0 0 ${width} ${height}`);
    });
    root.dataset.printing = 'yes';
  });
  addEventListener('afterprint', () => {
    folded.forEach((section) => (section.open = false));
    if (theme) root.dataset.theme = theme;
    else delete root.dataset.theme;
    delete root.dataset.printing;
    drawAll();
  });

  all('.controls, .saves, .downloads, .interactive, [data-copy]').forEach(
    (element) => (element.hidden = false),
  );
  hint();
  // One figure after the other, so that the page answers in between.
  (async () => {
    for (const box of plots) {
      draw(box);
      await new Promise((next) => setTimeout(next));
    }
    root.dataset.drawn = 'yes';
  })();
})();
