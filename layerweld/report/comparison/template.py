"""The page of a comparison: a Jinja template inside of the pages' common frame."""

COMPARISON_PAGE = """\
{% extends "shell" %}
{% from "parts" import figure, grid %}
{% block main %}
<header>
  <p class="eyebrow">layerweld · comparison</p>
  <h1>{{ name }}</h1>
  <p class="conclusion">{{ conclusion }}</p>
  <p class="caveat">{{ notes }}</p>
</header>
<section id="charts-section">
  <h2>Accuracy and cost</h2>
  {% for chart in drawn %}{{ figure(chart) }}{% endfor %}
</section>
{% for title, table in tables.items() %}
<section>
  <h2>{{ title }}</h2>
  {{ grid(title, table) }}
</section>
{% endfor %}
{% if refused %}
<section id="refused">
  <h2>Left out</h2>
  <ul>{% for line in refused %}<li>{{ line }}</li>{% endfor %}</ul>
</section>
{% endif %}
{% endblock %}
"""
