"""The page of the report: a Jinja template inside of the pages' common frame."""

RUN_PAGE = """\
{% extends "shell" %}
{% from "parts" import figure, grid %}
{% macro shown(section) %}
<section id="{{ section.key }}">
  <h2>{{ section.title }}</h2>
  {% if section.text %}<p{% if not section.charts %} class="empty"{% endif %}>{{ section.text }}
    {%- if section.setting %} <code>{{ section.setting }}</code>{% endif %}</p>{% endif %}
  <div{% if section.side_by_side %} class="pair"{% endif %}>
  {% for chart in section.charts %}{{ figure(chart) }}{% endfor %}
  </div>
  {% if section.table %}
  {% if section.fold %}<details><summary>{{ section.fold }}</summary>{% endif %}
  {{ grid(section.title, section.table) }}
  {% if section.fold %}</details>{% endif %}
  {% endif %}
</section>
{% endmacro %}
{% block main %}
<header>
  <p class="eyebrow">layerweld · merge report · {{ base }}</p>
  <h1>{{ name }}</h1>
  <p class="conclusion">{{ conclusion }}</p>
  {% if caveat %}<p class="caveat">{{ caveat }}</p>{% endif %}
</header>

<dl class="tiles">
  {% for tile in tiles %}
  <div><dt>{{ tile.label }}</dt><dd>{{ tile.value }}</dd>
    {% if tile.detail %}<dd class="detail">{{ tile.detail }}</dd>{% endif %}</div>
  {% endfor %}
</dl>

{% if lost %}{{ shown(lost) }}{% endif %}

<section id="accuracy">
  <h2>Accuracy</h2>
  {% if accuracy %}
  <p>Held-out accuracy at each site{% if accuracy.normalised %}, and below it the same as a share of
    what the site's own fine-tuned model reaches there{% endif %}. The best merge of each row is
    bold.</p>
  <div class="scroll" tabindex="0" role="region" aria-label="Accuracy table">
  <table class="accuracy">
    <thead><tr><th scope="col">Site</th>
      {% for column in accuracy.columns %}<th scope="col" class="number">
        <i class="swatch" style="background: var(--{{ column.colour }})"></i>{{ column.label }}
        {% if column.tag %}<small>{{ column.tag }}</small>{% endif %}</th>{% endfor %}
      <th scope="col" class="number">Samples</th>
      <th scope="col" class="number">±&nbsp;95&nbsp;%</th></tr>
    </thead>
    <tbody>
    {% for row in accuracy.rows %}
    <tr{% if row.total %} class="total"{% endif %}><th scope="row">{{ row.name }}</th>
      {% for cell in row.cells %}<td class="number{% if cell.best %} best{% endif %}">
        <span class="absolute">{{ cell.absolute }}</span>
        {% if cell.normalised %}<span class="normalised">{{ cell.normalised }}</span>{% endif %}
      </td>{% endfor %}
      <td class="number samples">{{ row.samples }}</td><td class="number error">{{ row.error }}</td>
    </tr>
    {% endfor %}
    </tbody>
  </table>
  </div>
  <p class="note">Samples: held-out samples of the site. ±: half of the widest binomial 95 %
    interval in the row, in points of accuracy; differences below it may be chance.
    {% if accuracy.left_out %}Means leave out {{ accuracy.left_out }}, where not every method has a
    score.{% endif %}</p>
  {% else %}
  <p class="empty">No held-out accuracy was measured. It is where every site has labelled
    held-out samples and a head, and <code>evaluate.enabled</code> is not off.</p>
  {% endif %}
  {% for chart in accuracy_charts %}{{ figure(chart) }}{% endfor %}
</section>

{% for section in sections %}{{ shown(section) }}{% endfor %}

<section id="use">
  <h2>Using the merged model</h2>
  <p>{{ usage.text }}</p>
  <pre><code>{{ usage.code }}</code></pre>
</section>

<section id="limits">
  <h2>What this report does not say</h2>
  <ul>
    {% for limit in limits %}<li>{{ limit }}</li>{% endfor %}
  </ul>
</section>

<section id="settings">
  <h2>Settings and versions</h2>
  <div class="facts">
    {% for facts in facts %}
    <table><caption>{{ facts.title }}</caption><tbody>
      {% for key, value in facts.rows %}<tr><th scope="row">{{ key }}</th>
        <td>{{ value }}</td></tr>{% endfor %}
    </tbody></table>
    {% endfor %}
  </div>
  <p class="note">Manifest <code>{{ manifest_hash }}</code></p>
</section>
{% endblock %}
"""
