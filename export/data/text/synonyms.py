"""Words that people type and captions never write: the lexicon reads them, and says them to the model again in its own words.

Only what a value of the schema really means is here; "a crown", "a ponytail" or "hazel eyes" are not, so that a prompt with them is told
that they were not understood.
"""

from __future__ import annotations

from collections.abc import Mapping

Words = tuple[str, ...]

#: Values → phrases.  Articles and possessives do not matter, hyphens are blanks.
SYNONYMS: Mapping[tuple[tuple[str, str], ...], Words] = {
    (("gender_presentation", "feminine"),): (
        "she", "mother", "mum", "mom", "mummy", "mommy", "aunt", "auntie", "sister", "wife", "bride", "ma'am", "madam", "women", "ladies",
        "businesswoman", "actress", "policewoman",
    ),
    (("gender_presentation", "masculine"),): (
        "he", "him", "father", "dad", "daddy", "uncle", "brother", "husband", "gent", "fellow", "feller", "bro", "men", "guys",
        "businessman", "policeman", "fireman",
    ),
    (("gender_presentation", "feminine"), ("age", "young")): ("girls", "daughter", "schoolgirl"),
    (("gender_presentation", "masculine"), ("age", "young")): ("boys", "son", "schoolboy"),
    (("gender_presentation", "feminine"), ("age", "old")): ("gran", "nan", "nana", "nanny", "grannie", "grandmum"),
    (("gender_presentation", "masculine"), ("age", "old")): ("grandad", "granddaddy", "gramps", "gramp"),
    (("age", "young"),): (
        "teenager", "teen", "teenage", "teenaged", "kid", "child", "youngster", "adolescent", "student", "in twenties", "in thirties",
        "in early thirties", "in early twenties", "in teens", "younger",
    ),
    (("age", "middle_aged"),): ("middle age", "in forties", "in fifties", "in late thirties", "in late forties", "in early fifties"),
    (("age", "old"),): (
        "older", "ancient", "pensioner", "retiree", "retired", "senior citizen", "elder", "geriatric", "in sixties", "in seventies",
        "in eighties", "in nineties",
    ),
    (("skin_texture", "freckled"),): ("freckle faced", "freckle"),
    (("skin_texture", "blemished"),): ("zits", "spots", "pimply", "acne scars", "acne prone", "bad skin"),
    (("skin_texture", "smooth"),): ("flawless skin", "perfect skin"),
    (("skin_tone", "tan"),): ("suntanned", "sun tanned", "suntan", "tan", "bronzed", "olive skinned"),
    (("skin_tone", "pale"),): ("pasty", "very white skin"),
    (("skin_tone", "dark"), ("gender_presentation", "masculine")): ("black man", "black guy", "black gentleman"),
    (("skin_tone", "dark"), ("gender_presentation", "feminine")): ("black woman", "black lady"),
    (("skin_tone", "light"), ("gender_presentation", "masculine")): ("white man", "white guy"),
    (("skin_tone", "light"), ("gender_presentation", "feminine")): ("white woman", "white lady"),
    (("cheeks", "rosy"),): ("blushing", "blush", "rosy cheeked", "red cheeked", "ruddy cheeks", "ruddy", "rouge"),
    (("chin", "double"),): ("double chinned", "two chins"),
    (("hair_length", "bald"),): ("hairless", "shaven head", "shaved bald", "skinhead", "baldy", "bald as egg", "hair all gone"),
    (("hair_length", "short"),): ("buzz cut", "buzzcut", "crew cut", "pixie cut", "pixie haircut", "short haircut", "short cut"),
    (("hair_length", "medium"),): ("bob cut", "bob haircut", "chin length hair", "neck length hair", "hair to shoulders"),
    (("hair_texture", "curly"),): ("curls", "ringlets", "afro", "perm"),
    (("hair_texture", "wavy"),): ("waves", "wavy haired"),
    (("hair_texture", "straight"),): ("straight haired",),
    (("hair_color", "black"),): ("raven haired",),
    (("hair_color", "gray"),): ("white haired", "gone gray", "gone grey", "graying", "greying"),
    (("hair_color", "red"),): ("auburn haired", "carrot top"),
    (("hairline", "receding"),): ("balding", "going bald", "losing hair", "thinning on top", "bald patch", "receding hair"),
    (("bangs", "side_swept"),): ("curtain bangs", "swept bangs", "swept fringe", "sideswept bangs"),
    (("eye_bags", "visible"),): ("dark circles", "dark rings under eyes", "puffy eyes", "baggy eyes", "tired eyes", "circles under eyes"),
    (("eye_shape", "narrow"),): ("squinting", "squinty"),
    (("makeup", "heavy"),): ("mascara", "eyeshadow", "eye shadow", "eyeliner", "made up", "full face of makeup", "thick makeup"),
    (("lipstick", "red"),): ("bright red lips", "painted lips"),
    (("lips", "full"),): ("pouty lips",),
    (("beard", "stubble"),): ("scruff", "scruffy", "five o clock shadow", "few days' growth", "designer stubble", "three day beard"),
    (("beard", "full"),): (
        "facial hair", "big beard", "huge beard", "thick bushy beard", "full bushy beard", "long bushy beard", "whiskers", "beardy",
    ),
    (("beard", "none"), ("mustache", "none")): ("clean-shaven", "cleanly shaven", "smooth shaven", "freshly shaven", "clean shave"),
    (("mustache", "present"),): (
        "stache", "tache", "handlebar mustache", "handlebar moustache", "moustached", "mustached", "mustachioed", "moustachioed",
        "big mustache", "big moustache", "thick mustache", "thick moustache", "bushy mustache", "bushy moustache",
    ),
    (("sideburns", "present"),): ("mutton chops", "muttonchops"),
    (("eyewear", "eyeglasses"),): ("glasses on", "spectacled", "eyeglass", "nerd glasses", "round glasses", "thick glasses"),
    (("eyewear", "sunglasses"),): ("sunnies", "aviators", "ray bans", "tinted glasses", "black glasses", "dark shades"),
    (("hat", "cap"),): ("flat cap", "snapback", "trucker hat", "trucker cap", "peaked cap", "baseball hat"),
    (("hat", "beanie"),): (
        "woolen hat", "woollen hat", "wool hat", "wooly hat", "knitted hat", "knitted cap", "knit cap", "bobble hat", "winter hat", "tuque",
        "toque", "beanie hat", "woolly cap", "ski hat",
    ),
    (("hat", "brimmed"),): (
        "top hat", "cowboy hat", "stetson", "straw hat", "bowler", "bowler hat", "panama hat", "panama", "sombrero", "trilby", "bucket hat",
        "floppy hat", "sunhat", "big hat",
    ),
    (("earrings", "studs"),): ("pearl earrings", "diamond earrings", "stud", "ear stud", "little earrings", "tiny earrings"),
    (("earrings", "hoops"),): (
        "ear rings", "hoop", "hoop earring", "gold earrings", "gold hoops", "gold hoop earrings", "dangly earrings", "large earrings",
        "dangling earrings", "big hoops", "large hoops",
    ),
    (("necklace", "chain"),): ("pendant", "locket", "gold necklace", "silver necklace", "silver chain", "neck chain", "bling"),
    (("necklace", "pearls"),): ("string of pearls", "pearl", "beads"),
    (("necktie", "bow_tie"),): ("dickie bow", "dicky bow"),
    (("face_mask", "worn"),): ("face covering", "covid mask", "n 95", "mouth mask", "masked", "medical face mask"),
    (("build", "chubby"),): ("overweight", "heavyset", "heavy set", "stout", "tubby", "pudgy", "podgy", "chunky", "obese", "round faced"),
    (("build", "slim"),): ("lean", "lanky", "bony", "gaunt", "slight", "scrawny"),
    (("emotion", "neutral"),): ("calm", "serious", "blank", "emotionless", "poker face", "deadpan", "straight face"),
    (("emotion", "happy"),): ("glad", "delighted", "jolly", "merry", "joyous", "pleased", "ecstatic", "overjoyed", "content"),
    (("emotion", "sad"),): ("gloomy", "miserable", "depressed", "upset", "heartbroken", "melancholy", "melancholic", "sadness", "glum"),
    (("emotion", "angry"),): ("annoyed", "irritated", "enraged", "livid", "grumpy", "raging", "anger", "pissed off"),
    (("emotion", "afraid"),): ("terrified", "anxious", "nervous", "worried", "panicked", "panicking", "fear"),
    (("emotion", "surprised"),): ("startled", "stunned", "astounded", "surprise"),
    (("emotion", "disgusted"),): ("revolted", "repulsed", "grossed out", "disgust"),
    (("emotion", "contemptuous"),): ("smug", "disdainful", "arrogant", "haughty", "contempt"),
    (("action", "smile"),): ("smiles", "smiley", "grins", "grin", "beaming", "smirking", "happy smile"),
    (("action", "laugh"),): ("chuckling", "laughs", "cracking up"),
    (("action", "frown"),): ("scowling", "frowns", "scowl", "pouting"),
    (("action", "talk"),): ("talks", "chatting", "speaks"),
    (("action", "shout"),): ("shouts", "hollering", "screams", "yells"),
    (("action", "sing"),): ("sings", "singer"),
    (("action", "sleep"),): ("sleeps", "napping", "dozing", "snoozing", "taking nap"),
    (("action", "cry"),): ("cries", "tearful", "teary", "tears", "with tears"),
    (("action", "weep"),): ("bawling", "weeps"),
    (("action", "drink"),): ("drinks", "sipping", "drinking coffee", "drinking tea", "drinking water", "having drink"),
    (("action", "eat"),): ("eats", "munching", "snacking", "having snack"),
    (("action", "smoke"),): ("smokes", "smoker", "cigarette", "vaping", "with cigar", "cigar"),
    (("action", "kiss"),): ("puckering up", "air kiss", "kisses"),
    (("action", "listen_to_music"),): ("wearing headphones", "headphones", "earphones", "earbuds"),
    (("action", "play_instrument"),): (
        "playing guitar", "playing violin", "playing piano", "playing flute", "playing trumpet", "playing music",
    ),
    (("action", "close_eyes"),): ("eyes shut", "closed eyes", "eyes are closed", "shut eyes"),
    (("action", "gaze"),): ("daydreaming", "looking into distance"),
    (("action", "read"),): ("reads", "reading newspaper", "with book"),
    (("action", "wink"),): ("winks",),
    (("action", "yawn"),): ("yawns",),
    (("head_pose", "front"),): (
        "looking straight ahead", "facing front", "facing viewer", "facing straight ahead", "front view", "looking at viewer",
        "looking forward",
    ),
    (("head_pose", "left"),): ("facing to left", "turned left", "turning left", "head turned left", "head turned to left"),
    (("head_pose", "right"),): ("facing to right", "turned right", "turning right", "head turned right", "head turned to right"),
    (("lighting", "left"),): ("light comes from left", "light from left", "lit from left side", "light on left"),
    (("lighting", "right"),): ("light comes from right", "light from right", "lit from right side", "light on right"),
    (("lighting", "even"),): ("light is even", "even light", "even lighting", "soft light", "soft lighting", "flat lighting"),
    (("sharpness", "sharp"),): ("sharp", "crisp", "in focus"),
    (("sharpness", "blurry"),): ("blurry", "blurred", "fuzzy", "unfocused"),
}  # fmt: skip

#: Slot → value → adjectives that stand before the slot's nouns, beside those that captions write.
ADJECTIVES: Mapping[str, Mapping[str, Words]] = {
    "hair_length": {
        "short": ("buzzed", "shorn"),
        "medium": ("chin-length", "neck-length", "mid-length"),
        "long": ("very long", "waist-length"),
    },
    "hair_texture": {"curly": ("frizzy", "kinky", "curled"), "straight": ("sleek",)},
    "hair_color": {
        "black": ("dark", "raven", "raven-black"),
        "brown": ("light brown", "dark brown", "brunette", "chocolate"),
        "blonde": ("platinum", "platinum blonde", "fair", "sandy", "dirty blonde", "ash blonde", "light blonde", "yellow"),
        "red": ("auburn", "copper", "orange", "carrot", "reddish", "strawberry blonde"),
        "gray": ("white", "graying", "greying", "grizzled"),
        "blue": ("bright blue", "dyed blue"),
    },
    "eye_shape": {"narrow": ("squinty", "beady")},
    "eye_color": {
        "blue": ("bright blue", "light blue", "deep blue"),
        "brown": ("dark brown", "light brown", "dark"),
        "green": ("bright green",),
    },
    "eyebrow_thickness": {"thin": ("plucked", "fine"), "bushy": ("heavy", "full")},
    "nose_size": {"small": ("tiny", "little", "petite"), "big": ("huge", "prominent")},
    "nose_shape": {"round": ("bulbous", "button"), "pointy": ("sharp",)},
    "lips": {"full": ("thick", "plump", "big"), "thin": ("narrow",)},
    "lipstick": {"red": ("bright red", "ruby"), "pink": ("rosy",)},
    "skin_texture": {"blemished": ("pimply",), "smooth": ("flawless",)},
    "skin_tone": {
        "light": ("white",),
        "pale": ("porcelain", "very pale"),
        "tan": ("olive", "bronzed"),
        "dark": ("black", "ebony", "very dark"),
    },
    "build": {"slim": ("lean", "gaunt", "skinny"), "chubby": ("pudgy", "full", "podgy")},
    "face_shape": {"square": ("square-shaped",)},
    "clothing_color": {"blue": ("navy", "dark blue", "light blue"), "red": ("crimson", "scarlet"), "green": ("dark green",)},
}

#: Nouns of captions → others that take the same adjectives.
NOUNS: Mapping[str, Words] = {
    "hair": ("haircut", "hairdo", "locks"),
    "clothes": (
        "tshirt", "tee", "hoodie", "sweatshirt", "jumper", "pullover", "dress", "coat", "cardigan", "polo", "polo shirt", "suit", "blazer",
        "turtleneck", "vest", "outfit",
    ),
    "background": ("bg", "back ground"),
}  # fmt: skip
