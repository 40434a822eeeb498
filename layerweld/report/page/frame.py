"""What all pages share: the frame around a page, and how charts and tables stand in it.

A Python module because Flower's app bundles carry no HTML. Nothing in it loads anything.
"""

SHELL = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; \
style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:">
<title>{{ name }} – layerweld</title>
<style>
:root { {% for key, value in light.items() %}--{{ key }}: {{ value }}; {% endfor %} }
@media screen and (prefers-color-scheme: dark) {
  :root { {% for key, value in dark.items() %}--{{ key }}: {{ value }}; {% endfor %} }
}
{{ style }}
</style>
</head>
<body>
<main>
{% block main %}{% endblock %}
</main>
<noscript><p class="empty">The charts need JavaScript; the tables have the same numbers.</p>
</noscript>
<script>{{ plotly }}</script>
<script type="application/json" id="charts">{{ charts }}</script>
<script>{{ script }}</script>
</body>
</html>
"""

PARTS = """\
{% macro figure(chart) %}
<figure>
  <figcaption><h3>{{ chart.title }}</h3></figcaption>
  <div class="chart" id="chart-{{ chart.key }}" role="img" aria-label="{{ chart.title }}"
    style="height: {{ chart.height }}px"></div>
  <p class="reading">{{ chart.reading }}</p>
</figure>
{% endmacro %}
{% macro grid(title, table) %}
  <div class="scroll" tabindex="0" role="region" aria-label="{{ title }}">
  <table><thead><tr>
    {% for head in table.head %}<th scope="col"
      {%- if not (loop.first or head in table.words) %} class="number"{% endif %}>
      {{- head }}</th>{% endfor %}
  </tr></thead><tbody>
    {% for row in table.rows %}<tr>
      {% for cell in row %}{% if loop.first %}<th scope="row">{{ cell }}</th>
      {% else %}<td
        {%- if table.head[loop.index0] not in table.words %} class="number"{% endif %}>
        {{- cell }}</td>{% endif %}{% endfor %}
    </tr>{% endfor %}
  </tbody></table></div>
{% endmacro %}
"""
