/* Draws the figures of a page, and makes its table, switches and buttons work.

   The data are the JSON in the element #data: styles of the methods, figures,
   texts to save. A figure has `curves` (a choice of x axes, values with their
   range over seeds), `points` (value and cost), or `traces` and `layout` as
   Plotly takes them. A colour is the name of a CSS variable. Nothing is loaded
   from elsewhere. */
(() => {
  'use strict';

  const page = JSON.parse(document.getElementById('data').textContent);
  const names = Object.keys(page.styles);
  const plots = [...document.querySelectorAll('[data-figure]')];
  const options = {x: 'steps', scale: 'auto', values: 'values'};
  const hidden = new Set();
  const X_LABELS = {
    steps: 'step',
    gradients: 'gradients, in units of a step of the base optimizer',
    seconds: 'seconds of training',
  };
  const HEIGHT = 340;
  const MARGIN = {l: 58, r: 16, t: 12, b: 46};
  const LABEL_GAP = 14; // pixels between the labels of two curves

  const all = (selector, root = document) => [
    ...root.querySelectorAll(selector),
  ];

  function say(text) {
    document.querySelector('.status').textContent = text;
  }

  // Colours

  const probe = document.body.appendChild(document.createElement('span'));
  probe.hidden = true;

  function rgb(variable) {
    // Resolves light-dark(), which a custom property does not.
    probe.style.color = `var(${variable})`;
    return getComputedStyle(probe).color.match(/[\d.]+/g).slice(0, 3);
  }

  function color(variable, opacity = 1) {
    return `rgba(${rgb(variable).join(',')},${opacity})`;
  }

  function mixed(variable, other, fraction) {
    const [a, b] = [rgb(variable), rgb(other)];
    const mix = a.map((value, i) => value * (1 - fraction) + b[i] * fraction);
    return `rgb(${mix.map(Math.round).join(',')})`;
  }

  function colored(value) {
    if (typeof value === 'string') {
      return value.startsWith('--') ? color(value) : value;
    }
    if (Array.isArray(value)) return value.map(colored);
    if (value === null || typeof value !== 'object') return value;
    return Object.fromEntries(
      Object.entries(value).map(([key, entry]) => [key, colored(entry)]),
    );
  }

  // Layout

  function axis(given = {}) {
    const title = {standoff: 8, font: {size: 12}, ...given.title};
    const base = {
      color: color('--ink'),
      gridcolor: color('--grid'),
      linecolor: color('--muted'),
      zerolinecolor: color('--muted'),
      zerolinewidth: 1,
      showline: true,
      ticks: 'outside',
      ticklen: 4,
      tickcolor: color('--muted'),
      automargin: true,
    };
    if (given.type === 'log') {
      const [low, high] = given.range || [0, 1];
      const wide = high - low > 2;
      // 1, 2, 5, 10, 20, ... or whole decades, written out.
      Object.assign(base, {dtick: wide ? Math.ceil((high - low) / 6) : 'D2'});
      Object.assign(base, {tickformat: '.3~g'});
    }
    return {...base, ...given, title};
  }

  function layoutOf(given, box) {
    const layout = colored(given);
    return {
      height: HEIGHT,
      margin: MARGIN,
      paper_bgcolor: 'rgba(0,0,0,0)',
      plot_bgcolor: 'rgba(0,0,0,0)',
      font: {
        family: getComputedStyle(document.body).fontFamily,
        size: 12,
        color: color('--ink'),
      },
      hoverlabel: {
        bgcolor: color('--panel'),
        bordercolor: color('--muted'),
        font: {color: color('--ink')},
      },
      showlegend: false,
      hovermode: 'closest',
      // A finger that scrolls the page must not zoom.
      dragmode: matchMedia('(pointer: coarse)').matches ? false : 'zoom',
      ...layout,
      width: box.clientWidth,
      xaxis: axis(layout.xaxis),
      yaxis: axis(layout.yaxis),
    };
  }

  // Curves: one line for each method, its range over seeds, its name at the end

  function interpolate(xs, ys, x) {
    const after = xs.findIndex((value) => value >= x);
    if (after < 0 || (after === 0 && xs[0] > x)) return null;
    if (xs[after] === x) return ys[after];
    const share = (x - xs[after - 1]) / (xs[after] - xs[after - 1]);
    return ys[after - 1] + share * (ys[after] - ys[after - 1]);
  }

  function shownCurves(figure) {
    const own = figure.curves.some((curve) => curve[options.x])
      ? options.x
      : 'steps';
    const base = figure.curves.find((curve) => curve.method === page.base);
    const asDifference = options.values === 'difference' && base && base[own];
    const curves = figure.curves
      .filter((curve) => curve[own] && !hidden.has(curve.method))
      .map((curve) => {
        const x = curve[own];
        if (!asDifference) return {...curve, x};
        const at = x.map((value) => interpolate(base[own], base.y, value));
        const less = (values) =>
          values.map((value, i) => (at[i] === null ? null : value - at[i]));
        return {
          ...curve,
          x,
          y: less(curve.y),
          low: less(curve.low),
          high: less(curve.high),
        };
      });
    return {curves, own, asDifference};
  }

  function rangeOf(curves, {skip, include}, logarithmic) {
    const calm = curves.filter((curve) => !curve.diverged);
    const values = (calm.length ? calm : curves).flatMap((curve) => {
      const first = Math.floor(skip * curve.y.length);
      return curve.y.slice(first).filter((value) => value !== null);
    });
    if (!values.length) return null;
    if (!logarithmic) values.push(...include);
    let [low, high] = [Math.min(...values), Math.max(...values)];
    if (logarithmic) [low, high] = [Math.log10(low), Math.log10(high)];
    const margin = 0.06 * (high - low) || 0.05 * Math.abs(high) || 0.01;
    return [low - margin, high + margin];
  }

  function endLabels(curves, range, logarithmic, box) {
    // Moves labels apart that would overlap; the order of the ends stays.
    const height = HEIGHT - MARGIN.t - MARGIN.b;
    const room = Math.floor(height / LABEL_GAP);
    const ends = curves
      .map((curve) => {
        const last = curve.y.findLastIndex((value) => value !== null);
        const value = curve.y[last];
        const level = logarithmic ? Math.log10(value) : value;
        const share = (level - range[0]) / (range[1] - range[0]);
        return {curve, y: Math.min(1, Math.max(0, share)) * height};
      })
      .filter(({y}) => Number.isFinite(y))
      .sort((a, b) => a.y - b.y);
    if (ends.length > room) return [];
    ends.forEach((end, i) => {
      if (i) end.y = Math.max(end.y, ends[i - 1].y + LABEL_GAP);
    });
    let top = height;
    for (const end of ends.reverse()) {
      end.y = Math.min(end.y, top);
      top = end.y - LABEL_GAP;
    }
    const size = box.clientWidth < 480 ? 11 : 12;
    return ends.map(({curve, y}) => ({
      xref: 'paper',
      x: 1,
      xanchor: 'left',
      xshift: 5,
      yref: 'paper',
      y: y / height,
      yanchor: 'middle',
      showarrow: false,
      text: page.styles[curve.method].label,
      font: {size, color: mixed(page.styles[curve.method].color, '--ink', 0.3)},
    }));
  }

  function marginFor(labels) {
    const longest = Math.max(0, ...labels.map(({text}) => text.length));
    return {...MARGIN, r: Math.max(MARGIN.r, 14 + 6.9 * longest)};
  }

  function drawCurves(figure, box) {
    const {curves, own, asDifference} = shownCurves(figure);
    const positive = curves.every((curve) =>
      curve.y.every((value) => value === null || value > 0),
    );
    const wanted =
      options.scale === 'log' || (options.scale === 'auto' && figure.log);
    const logarithmic = wanted && positive && !asDifference;
    const range = rangeOf(curves, figure, logarithmic);
    const labels = range ? endLabels(curves, range, logarithmic, box) : [];
    const label = asDifference ? `${figure.label}, difference` : figure.label;
    const bands = curves.map((curve) => band(curve, logarithmic));
    const lines = curves.map((curve) => line(curve));
    return {
      traces: [...bands, ...lines],
      layout: {
        margin: marginFor(labels),
        annotations: labels,
        xaxis: {title: {text: X_LABELS[own]}, rangemode: 'tozero'},
        yaxis: {
          title: {text: logarithmic ? `${label}, log scale` : label},
          type: logarithmic ? 'log' : 'linear',
          range: range || undefined,
        },
      },
    };
  }

  function band(curve, logarithmic) {
    const kept = curve.x
      .map((x, i) => [x, curve.low[i], curve.high[i]])
      .filter(([, low]) => low !== null && (!logarithmic || low > 0));
    const back = [...kept].reverse();
    return {
      type: 'scatter',
      mode: 'lines',
      legendgroup: curve.method,
      meta: 'band',
      x: [...kept, ...back].map(([x]) => x),
      y: [...kept.map(([, low]) => low), ...back.map(([, , high]) => high)],
      fill: 'toself',
      fillcolor: color(page.styles[curve.method].color, 0.22),
      line: {width: 0},
      opacity: 0,
      hoverinfo: 'skip',
    };
  }

  function line(curve) {
    const style = page.styles[curve.method];
    return {
      type: 'scatter',
      mode: names.length > 8 ? 'lines+markers' : 'lines',
      legendgroup: curve.method,
      meta: 'line',
      x: curve.x,
      y: curve.y,
      line: {color: color(style.color), dash: style.dash, width: 2},
      marker: {symbol: style.symbol, size: 6, maxdisplayed: 7},
      hovertemplate: `${style.label}: %{y:.4~g} at %{x:.4~g}<extra></extra>`,
    };
  }

  // Points: value against cost, with the Pareto line

  function drawPoints(figure, box) {
    const own = options.x === 'gradients' ? 'gradients' : 'seconds';
    const points = figure.points
      .filter(({method}) => !hidden.has(method))
      .filter((point) => point[own] !== null);
    const sign = figure.higher_is_better ? 1 : -1;
    const front = [];
    for (const point of [...points].sort((a, b) => a[own] - b[own])) {
      const best = front.at(-1);
      if (!best || sign * (point.y - best.y) > 0) front.push(point);
    }
    const pareto = {
      type: 'scatter',
      mode: 'lines',
      x: front.map((point) => point[own]),
      y: front.map((point) => point.y),
      line: {color: color('--muted'), dash: 'dot', width: 1.5},
      hoverinfo: 'skip',
    };
    const marks = points.map((point) => {
      const style = page.styles[point.method];
      return {
        type: 'scatter',
        mode: 'markers+text',
        legendgroup: point.method,
        x: [point[own]],
        y: [point.y],
        error_y: {
          type: 'data',
          array: [point.error],
          color: color(style.color),
          thickness: 1.2,
          width: 3,
        },
        marker: {size: 11, symbol: style.symbol, color: color(style.color)},
        text: style.label,
        textposition: labelPlace(point, points, own, sign),
        textfont: {color: mixed(style.color, '--ink', 0.3)},
        hovertemplate: `${style.label}: %{y:.4~g} at %{x:.4~g}<extra></extra>`,
      };
    });
    const xs = points.map((point) => point[own]);
    const width = Math.max(120, box.clientWidth - 230); // beside the labels
    const ys = points.flatMap(({y, error}) => [y - error, y + error]);
    const range = (values, before, after) => {
      const [low, high] = [Math.min(...values), Math.max(...values)];
      const size = high - low || Math.abs(high) || 1;
      return [low - before * size, high + after * size];
    };
    return {
      traces: [pareto, ...marks],
      layout: {
        xaxis: {title: {text: X_LABELS[own]}, range: range(xs, 70 / width, 90 / width)},
        yaxis: {title: {text: figure.label}, range: range(ys, 0.1, 0.14)},
      },
    };
  }

  function labelPlace(point, points, own, sign) {
    // Beside the point, away from others and from the Pareto line.
    const spread = (key) => {
      const values = points.map((other) => other[key]);
      return Math.max(...values) - Math.min(...values) || 1;
    };
    const [width, height] = [spread(own), spread('y')];
    const near = (dx, dy) =>
      points.filter((other) => {
        if (other === point) return false;
        const x = (other[own] - point[own]) / width - dx;
        const y = (other.y - point.y) / height - dy;
        return Math.abs(x) < 0.14 && Math.abs(y) < 0.07;
      }).length;
    const [worse, better] = sign > 0 ? ['bottom', 'top'] : ['top', 'bottom'];
    const below = -0.07 * sign;
    const places = [
      [`${worse} right`, near(0.1, below)],
      ['middle right', near(0.12, 0)],
      [`${better} left`, near(-0.1, -below)],
      ['middle left', near(-0.12, 0)],
      [`${better} right`, near(0.1, -below)],
      [`${worse} left`, near(-0.1, below)],
    ];
    return places.sort((a, b) => a[1] - b[1])[0][0];
  }

  // Drawing

  function content(figure, box) {
    if (figure.curves) return drawCurves(figure, box);
    if (figure.points) return drawPoints(figure, box);
    const traces = colored(figure.traces).filter(
      (trace) => !hidden.has(trace.legendgroup),
    );
    const layout = {...figure.layout};
    if (layout.yaxis.scaleanchor) {
      layout.height = Math.min(layout.height, box.clientWidth - 50);
    }
    if (figure.end_labels) {
      const curves = traces.map(({legendgroup, y}) => ({
        method: legendgroup,
        y,
      }));
      const range = rangeOf(curves, {skip: 0, include: []}, false);
      layout.yaxis = {...layout.yaxis, range};
      layout.annotations = range ? endLabels(curves, range, false, box) : [];
    }
    if (layout.annotations?.some(({text}) => text)) {
      layout.margin = marginFor(layout.annotations);
    }
    return {traces, layout};
  }

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
      const plot = document.querySelector(`[data-figure="${name}"] .js-plot`);
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
