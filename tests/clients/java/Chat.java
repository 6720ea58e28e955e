// Java's HttpClient with its defaults, which asks each server to upgrade to HTTP/2.

import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.util.List;
import java.util.stream.Collectors;

/** Sends bodies as text: the JDK has no JSON. */
public class Chat {
    private static final String TOOL = """
        {"type": "function", "function": {"name": "paint", "parameters": {"type": "object",
        "properties": {"color": {"type": "string", "enum": ["red", "green"]}}, "required": ["color"],
        "additionalProperties": false}}}""";
    private static final String COAT = """
        {"type": "json_schema", "json_schema": {"name": "coat", "strict": true, "schema": {"type": "object",
        "properties": {"color": {"enum": ["red", "green"]}}, "required": ["color"],
        "additionalProperties": false}}}""";
    private static final String GREET = "{\"role\": \"user\", \"content\": \"Greet me.\"}";
    private static final String PAINT = "{\"role\": \"user\", \"content\": \"Paint the wall red.\"}";
    private static final String CALLED = """
        {"role": "assistant", "content": null, "tool_calls": [{"id": "call_1", "type": "function",
        "function": {"name": "paint", "arguments": "{\\"color\\":\\"red\\"}"}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "painted"}""";

    private static final HttpClient CLIENT = HttpClient.newHttpClient();

    private interface Case {
        void run() throws Exception;
    }

    public static void main(String[] arguments) {
        print("chat", () -> expect(post(GREET, ""), "Good morning, 안녕하세요."));
        print("stream", Chat::stream);
        print("tools", () -> callAndContinue("\"tools\": [" + TOOL + "]"));
        print("required", () -> callAndContinue(
            "\"tools\": [" + TOOL + "], \"tool_choice\": \"required\", \"parallel_tool_calls\": false"));
        print("structured", () -> expect(post(GREET, "\"response_format\": " + COAT), "{\\\"color\\\":"));
    }

    private static void stream() throws Exception {
        HttpResponse<java.util.stream.Stream<String>> response =
            CLIENT.send(request(GREET, "\"stream\": true"), HttpResponse.BodyHandlers.ofLines());
        List<String> events = response.body().filter(line -> !line.isEmpty()).collect(Collectors.toList());
        expect(events.get(events.size() - 1), "data: [DONE]");
        if (events.size() < 6) {
            throw new AssertionError(events.toString());
        }
    }

    private static void callAndContinue(String tools) throws Exception {
        String first = post(PAINT, tools);
        expect(first, "\"name\":\"paint\"");
        expect(first, "red");
        expect(post(PAINT + "," + CALLED, "\"tools\": [" + TOOL + "]"), "The wall is red now.");
    }

    private static String post(String messages, String fields) throws Exception {
        HttpResponse<String> response = CLIENT.send(request(messages, fields), HttpResponse.BodyHandlers.ofString());
        if (response.statusCode() != 200) {
            throw new AssertionError(response.statusCode() + " " + response.body());
        }
        return response.body();
    }

    private static HttpRequest request(String messages, String fields) {
        String model = "\"model\": \"" + System.getenv("MODEL") + "\", \"temperature\": 0";
        String body = "{" + model + ", \"messages\": [" + messages + "]" + (fields.isEmpty() ? "" : ", " + fields) + "}";
        return HttpRequest.newBuilder(URI.create(System.getenv("BASE_URL") + "/chat/completions"))
            .header("Authorization", "Bearer " + System.getenv("API_KEY"))
            .header("Content-Type", "application/json")
            .POST(HttpRequest.BodyPublishers.ofString(body))
            .build();
    }

    private static void expect(String found, String part) {
        if (!found.replace("\": \"", "\":\"").replace("\\\": ", "\\\":").contains(part)) {
            throw new AssertionError("expected " + part + " in " + found);
        }
    }

    private static void print(String name, Case test) {
        String error = "null";
        try {
            test.run();
        } catch (Exception | AssertionError caught) {
            error = "\"" + caught.toString().replaceAll("[\"\\\\\\p{Cntrl}]", "'") + "\"";
        }
        System.out.println("{\"case\": \"" + name + "\", \"error\": " + error + "}");
    }
}
