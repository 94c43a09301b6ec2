"""Topics, and sentences that fit each of them, in four languages; used by `scripted.instructions`."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Topic:
    """A topic of a question.

    Attributes:
        phrase: the topic as named in the question, with its article: "a lighthouse".
        names: language -> its name with the article: "the lighthouse", "el faro".
    """

    phrase: str
    names: dict[str, str]

    def named(self, language: str) -> str:
        """The topic's name in a sentence, with the definite article."""
        return self.names[language]

    def word(self, language: str) -> str:
        """The topic's name without the article."""
        return self.names[language].split("'")[-1].split(" ", 1)[-1]

    def other_words(self, language: str) -> tuple[str, ...]:
        """Other forms that count as the topic's name: an irregular plural."""
        return (PLURALS[self.word(language)],) if self.word(language) in PLURALS else ()


PLURALS = {"library": "libraries", "bakery": "bakeries", "factory": "factories", "family": "families"}

_ROWS = """
a lighthouse | the lighthouse | el faro | le phare | der Leuchtturm
a bridge | the bridge | el puente | le pont | die Brücke
a market | the market | el mercado | le marché | der Markt
a garden | the garden | el jardín | le jardin | der Garten
a train | the train | el tren | le train | der Zug
a kitchen | the kitchen | la cocina | la cuisine | die Küche
a library | the library | la biblioteca | la bibliothèque | die Bibliothek
a river | the river | el río | le fleuve | der Fluss
a school | the school | la escuela | l'école | die Schule
a bakery | the bakery | la panadería | la boulangerie | die Bäckerei
a forest | the forest | el bosque | la forêt | der Wald
a museum | the museum | el museo | le musée | das Museum
a beach | the beach | la playa | la plage | der Strand
a farm | the farm | la granja | la ferme | der Bauernhof
a mountain | the mountain | la montaña | la montagne | der Berg
a castle | the castle | el castillo | le château | das Schloss
a window | the window | la ventana | la fenêtre | das Fenster
a clock | the clock | el reloj | l'horloge | die Uhr
a boat | the boat | el barco | le bateau | das Boot
a street | the street | la calle | la rue | die Straße
a harbour | the harbour | el puerto | le port | der Hafen
a theatre | the theatre | el teatro | le théâtre | das Theater
a village | the village | el pueblo | le village | das Dorf
an island | the island | la isla | l'île | die Insel
a lake | the lake | el lago | le lac | der See
a tower | the tower | la torre | la tour | der Turm
a park | the park | el parque | le parc | der Park
a piano | the piano | el piano | le piano | das Klavier
a bicycle | the bicycle | la bicicleta | le vélo | das Fahrrad
a lantern | the lantern | el farol | la lanterne | die Laterne
a well | the well | el pozo | le puits | der Brunnen
a workshop | the workshop | el taller | l'atelier | die Werkstatt
a meadow | the meadow | el prado | le pré | die Wiese
a mill | the mill | el molino | le moulin | die Mühle
a statue | the statue | la estatua | la statue | die Statue
a café | the café | el café | le café | das Café
a church | the church | la iglesia | l'église | die Kirche
a desert | the desert | el desierto | le désert | die Wüste
a hotel | the hotel | el hotel | l'hôtel | das Hotel
a painting | the painting | el cuadro | le tableau | das Gemälde
a telescope | the telescope | el telescopio | le télescope | das Teleskop
a fountain | the fountain | la fuente | la fontaine | der Springbrunnen
a stadium | the stadium | el estadio | le stade | das Stadion
a cave | the cave | la cueva | la grotte | die Höhle
an orchard | the orchard | el huerto | le verger | der Obstgarten
a station | the station | la estación | la gare | der Bahnhof
a volcano | the volcano | el volcán | le volcan | der Vulkan
a waterfall | the waterfall | la cascada | la cascade | der Wasserfall
an airport | the airport | el aeropuerto | l'aéroport | der Flughafen
a ship | the ship | el buque | le navire | das Schiff
a vineyard | the vineyard | el viñedo | le vignoble | der Weinberg
a glacier | the glacier | el glaciar | le glacier | der Gletscher
a balcony | the balcony | el balcón | le balcon | der Balkon
a courtyard | the courtyard | el patio | la cour | der Innenhof
a zoo | the zoo | el zoológico | le zoo | der Zoo
a carpet | the carpet | la alfombra | le tapis | der Teppich
"""

TOPICS: tuple[Topic, ...] = tuple(
    Topic(cells[0], dict(zip(("English", "Spanish", "French", "German"), cells[1:], strict=True)))
    for cells in ([c.strip() for c in row.split("|")] for row in _ROWS.strip().splitlines())
)
_BY_PHRASE = {t.phrase: t for t in TOPICS}


def topic_named(phrase: str) -> Topic | None:
    """The topic named in a question, or None."""
    return _BY_PHRASE.get(phrase.strip())


ENGLISH = (
    "{topic} looks different in the soft light of morning.",
    "Many people remember {topic} from their childhood.",
    "A short visit to {topic} can make a long day better.",
    "Children love to draw pictures of {topic}.",
    "In winter there are fewer visitors near {topic}.",
    "There is always something new to notice about {topic}.",
    "On rainy afternoons {topic} seems almost silent.",
    "Old stories about {topic} are still told today.",
    "Someone has to look after {topic} every week.",
    "When the sun goes down {topic} turns golden.",
    "Friends often meet by {topic} and talk for hours.",
    "{topic} has changed a lot over the past years.",
    "You can hear birds around {topic} at dawn.",
    "Few places feel as welcoming as {topic} does.",
    "My grandmother used to tell us tales of {topic}.",
    "Travellers stop at {topic} before they move on.",
)
OTHERS: dict[str, tuple[str, ...]] = {
    "Spanish": (
        "{topic} significa mucho para la gente del lugar.",
        "Muchas personas recuerdan {topic} con alegría.",
        "En invierno hay menos visitantes cerca de {topic}.",
        "Los niños hablan de {topic} en la clase.",
        "Cada mañana {topic} parece un poco diferente.",
        "Las historias sobre {topic} se cuentan todavía.",
    ),
    "French": (
        "{topic} compte beaucoup pour les gens de la région.",
        "Beaucoup de personnes aiment {topic} depuis longtemps.",
        "En hiver {topic} attire un peu moins de monde.",
        "Les enfants parlent souvent de {topic} avec joie.",
        "Chaque matin {topic} change un peu de couleur.",
        "On raconte encore des histoires sur {topic} dans la région.",
    ),
    "German": (
        "{topic} ist für die Menschen hier sehr wichtig.",
        "Viele Leute denken gern an {topic} zurück.",
        "Im Winter ist {topic} ein ruhiger Ort.",
        "Die Kinder sprechen oft über {topic} in der Schule.",
        "Jeden Morgen sieht {topic} ein wenig anders aus.",
        "Man erzählt noch heute Geschichten über {topic} und das Dorf.",
    ),
}
